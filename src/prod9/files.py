"""Files that are whole or not there: atomic writing, reading with errors that name the file, content hashes.

Standard library only.
"""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath

from prod9.errors import DataError, Prod9Error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NAME_BYTES = 255
"""Bytes that a file name may have on the usual file systems."""
_QUOTED = 200
"""Characters of a library's own message that are quoted."""


@contextmanager
def reading(
    path: str | Path,
    expected: str = "a file that can be read",
    *,
    error: Callable[[str], Prod9Error] = DataError,
    remedy: str = "copy or download it again",
) -> Iterator[None]:
    """Turn every exception of a block that reads ``path`` into one of prod9 that names the file.

    Libraries raise all kinds of exceptions for damaged files. Keep the block to their calls: a bug in prod9's own
    code would look like a damaged file. Errors of prod9 pass unchanged.

    Args:
        path: of a file, or of a link to one; anything else is refused before the block starts.
        expected: the kind of file, for the message: "a NIfTI file".
        error: class of the error that is raised.
        remedy: for a damaged file.
    """
    path = Path(path)
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            got = "a folder" if stat.S_ISDIR(kind) else "a device or a pipe"
            raise error(f"{path}: expected {expected}, got {got}; name a file.")
        yield
    except Prod9Error:
        raise
    except MemoryError as problem:
        raise error(
            f"{path}: expected {expected} that fits into memory, got {_quoted(problem)}; use a smaller file, or a "
            "machine with more memory."
        ) from problem
    except OSError as problem:
        raise error(_unreadable(path, expected, problem, remedy)) from problem
    except Exception as problem:
        raise error(
            f"{path}: expected {expected}, got something else or a damaged file ({_quoted(problem)}); {remedy}."
        ) from problem


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that gets its name if the block ends without an error.

    The temporary file is in the same folder, hence on the same filesystem, and is fsynced before the rename:
    after a crash ``path`` holds the old content or the new. On an error it is removed. It keeps the suffixes
    of ``path``, since many writers choose the format by them.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # an impossible name fails here, before anything is written
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(_unwritable(path, error)) from error
    finally:
        with suppress(OSError):  # an error here would hide the one that matters
            temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Lock the file ``path``, which is made and stays empty, or the folder ``path``; waits for other holders.

    The system frees the lock when its holder ends for any reason. On Windows, which has no such lock, nothing is held.
    """
    path = Path(path)
    if path.is_dir() and fcntl is None:
        yield
        return
    how = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_APPEND
    try:
        descriptor = os.open(path, how, 0o666)
    except OSError as error:
        raise DataError(_unwritable(path, error)) from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:  # some network file systems have no locks, or none of folders
                if not path.is_dir():
                    raise DataError(
                        f"{path}: cannot be locked ({_quoted(error)}); choose a folder on another file system."
                    ) from error
        yield
    finally:
        os.close(descriptor)  # frees the lock


def inside(folder: str | Path, name: str) -> Path:
    """Return ``folder / name`` for a ``name`` that was read from a file: a label, a case, an entry of a manifest.

    ``name`` may hold subfolders, divided by ``/``. Raises DataError when it would leave the folder, here or on Windows
    (``..``, an absolute path, a drive), when it is empty, or when it holds control characters.
    """
    windows = PureWindowsPath(name)
    parts = name.split("/")
    leaves = (
        windows.drive
        or windows.root
        or ".." in windows.parts
        or any(part in ("", ".", "..") for part in parts)
    )
    if leaves or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise DataError(
            f"{name!r}: expected a name of a file within {folder}, got one that leaves it or holds control characters; "
            "rename what it comes from."
        )
    return Path(folder, *parts)


def is_plain_name(name: str) -> bool:
    """Return whether ``name`` can be the name of a file in a folder, without subfolders."""
    try:
        inside("", name)
    except DataError:
        return False
    return "/" not in name and "\\" not in name


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file's content as 64 hex digits; DataError if it cannot be read."""
    with reading(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file ``source`` the name ``target`` too, without a copy where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def check_writable(folder: str | Path) -> None:
    """Create ``folder`` if need be and try to write into it. Raises DataError, leaving nothing behind."""
    folder = Path(folder)
    probe = folder / f".tmp-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another process may have swept the folder
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written to ({error.strerror or error}); choose another --output-dir "
            "or change its permissions."
        ) from error


def _temporary(path: Path) -> Path:
    """Return a hidden name beside ``path`` that ends as its name does, within the length limit of names."""
    start = f".tmp-{secrets.token_hex(6)}-"
    room = _NAME_BYTES - len(start)
    end = os.fsencode(path.name)[-room:].decode("utf-8", "ignore")
    return path.with_name(start + end)


def _unwritable(path: Path, error: OSError) -> str:
    remedies = {
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.ENOSPC: "free some space, or choose a folder on another disk",
        errno.EDQUOT: "free some space (your quota is used up), or choose a folder on another disk",
    }
    remedy = remedies.get(error.errno or 0, "choose a folder that exists and that you may write to")
    return f"{path}: cannot be written ({_quoted(error)}); {remedy}."


def _unreadable(path: Path, expected: str, error: OSError, remedy: str) -> str:
    if isinstance(error, FileNotFoundError):
        link = next((part for part in (path, *path.parents) if _is_dangling(part)), None)
        if link is None:
            return f"{path}: no such file; check the path."
        return (
            f"{path}: expected {expected}, got a link whose target is missing ({link} leads to {link.readlink()}); "
            "fetch it (in a DataLad dataset with `datalad get` or `git annex get`), or correct the link."
        )
    remedies = {
        errno.EACCES: "change its permissions, or ask its owner",
        errno.EPERM: "change its permissions, or ask its owner",
        errno.ELOOP: "it is a link that leads to itself: correct the link",
        errno.ENAMETOOLONG: "check the path: the name is too long",
        errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    }
    if error.errno is None:  # not from the system: gzip raises it for damaged content
        return (
            f"{path}: expected {expected}, got something else or a damaged file ({_quoted(error)}); {remedy}."
        )
    return f"{path}: cannot be read ({_quoted(error)}); {remedies.get(error.errno, remedy)}."


def _is_dangling(path: Path) -> bool:
    with suppress(OSError):  # a folder that may not be looked into
        return path.is_symlink() and not path.exists()
    return False


def _quoted(error: BaseException) -> str:
    """Return the message of an error in one line, or its type if there is none."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    name = type(error).__name__
    return f"{name} {text}"[:_QUOTED] if isinstance(error, KeyError) or not text else text[:_QUOTED]


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, on platforms that can open a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
