"""Files that are whole or not there: atomic writing, content hashes, write probes. Standard library only."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prod9.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name when the block ends well.

    The temporary file is in the same folder, hence on the same filesystem, and is fsynced before the rename:
    after a crash ``path`` holds the old content or the new. On an error it is removed. It keeps the suffixes
    of ``path``, since many writers choose the format by them.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space, or choose a folder "
            "that you may write to."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the lock file ``path``, which stays there empty; waits for the process that has it.

    The system frees it when the holder ends, however that comes. Where there is no such lock (Windows) nothing is
    held.
    """
    try:
        file = Path(path).open("ab")  # noqa: SIM115 (closed below, by which the lock is freed)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder that you may write to."
        ) from error
    with file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file's content as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: str | Path) -> None:
    """Create ``folder`` if need be and try to write into it. Raises DataError, leaving nothing behind."""
    folder = Path(folder)
    probe = folder / f".tmp-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written to ({error.strerror or error}); choose another --output-dir "
            "or change its permissions."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some platforms cannot open a folder, and have to do without."""
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
