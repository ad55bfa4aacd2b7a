"""Locks that give a folder to one process, and the temporary files in it.

Writers (:func:`prod9.files.atomic_write`) work on temporary files beside the final ones. This module tells the two
apart and deletes temporary files of killed processes. Standard library only.
"""

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prod9.errors import ConfigError
from prod9.files import check_writable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
_TEMPORARY = ".tmp-"
_TRIES = 50
_MAY_ASK, _DENIED, _STILL_ACTIVE = 0x1000, 5, 259
"""Of Windows: the right to ask how a process ended, the error without that right, and the answer while it runs."""

_held: set[int] = set()
"""Descriptors of the locks of this process."""


def is_temporary(path: Path) -> bool:
    """Return whether ``path`` is, by its name, the temporary file of a writer."""
    return path.name.startswith(_TEMPORARY)


def finals(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files of ``folder`` whose names match, in order of names, without temporary files.

    ``Path.glob("*.ckpt")`` would list the temporary ones too, since they keep the suffix.
    """
    return sorted(path for path in folder.glob(pattern) if not is_temporary(path) and path.is_file())


def sweep(folder: Path, *, deep: bool = False, older_than_s: float = 0.0) -> None:
    """Delete the temporary files of killed processes in ``folder``, if it exists.

    Files that cannot be deleted stay. Hold the lock of the folder, or give an age that no write of another process
    reaches.

    Args:
        folder: where to delete.
        deep: in the folders below it too.
        older_than_s: age in seconds from which files are deleted.
    """
    now = time.time()
    for path in folder.rglob(f"{_TEMPORARY}*") if deep else folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if older_than_s <= 0 or now - path.stat().st_mtime > older_than_s:
                path.unlink()


@contextmanager
def claimed(folder: Path, *, key: str = "output_dir") -> Iterator[None]:
    """Lock ``folder`` for this process alone, and make it if need be; ConfigError if another process has it.

    The system frees the lock when the process ends for any reason. ``.lock`` names the holder and is deleted
    afterwards. key: the option that names the folder, for the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    lock = folder / LOCK
    descriptor = _take(lock, key)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        if fcntl is None:  # Windows deletes no file that is open
            with suppress(OSError):
                os.close(descriptor)
        with suppress(OSError):  # an error here would hide the one that matters
            lock.unlink()
        if fcntl is not None:
            with suppress(OSError):
                os.close(descriptor)


class SharedLock:
    """Shares the lock file ``path`` with other processes until this object is deleted or its process ends.

    If the file cannot be made or locked, nothing is held: a store on a read-only disk can still be read.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        if fcntl is None:
            return
        for how in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
            try:
                self._descriptor = os.open(path, how, 0o666)
                break
            except OSError:
                continue
        self.make_shared()

    def make_exclusive(self) -> bool:
        """Return whether nobody else holds it, and keep others out from then on."""
        return self._descriptor is None or _lock(self._descriptor)

    def make_shared(self) -> None:
        """Let others in again; waits while another process keeps everybody out."""
        if self._descriptor is not None:
            _lock(self._descriptor, shared=True)

    def __del__(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)


def _take(lock: Path, key: str) -> int:
    mine = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
    }
    holder: dict[str, Any] = {}
    for attempt in range(_TRIES):
        descriptor = _create(lock, mine) if attempt % 2 == 0 else None
        if descriptor is not None:
            return descriptor
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except FileNotFoundError:
            continue
        if not _lock(descriptor):
            holder = _read(descriptor) or holder
            os.close(descriptor)
            if _is_alive(holder):
                break
            time.sleep(0.01)  # its holder has just taken it over and has not written its name yet
            continue
        # Its last holder may have removed it while this process waited.
        if not _is_there(descriptor, lock):
            os.close(descriptor)
            continue
        holder = _read(descriptor)
        if _is_alive(holder):
            os.close(descriptor)
            break
        _write(descriptor, mine)
        return descriptor
    raise ConfigError(
        f"{key}: expected a folder that no other process is using, got {lock.parent}, held by "
        f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}; wait for it, or name "
        f"another folder. If no such process runs, delete {lock}."
    )


def _create(lock: Path, mine: dict[str, Any]) -> int | None:
    """Make the lock file, which is locked and complete before it gets its name; None if there is one."""
    if fcntl is None:  # Windows deletes no file that is open, so the other name would stay
        return _create_in_place(lock, mine)
    temporary = lock.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write(descriptor, mine)
        _lock(descriptor)
        try:
            os.link(temporary, lock)
        except (FileExistsError, FileNotFoundError):  # the latter: swept by the holder of the folder
            os.close(descriptor)
            return None
        except OSError:  # no hard links here
            os.close(descriptor)
            return _create_in_place(lock, mine)
        return descriptor
    finally:
        with suppress(OSError):
            temporary.unlink()


def _create_in_place(lock: Path, mine: dict[str, Any]) -> int | None:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    _lock(descriptor)
    _write(descriptor, mine)
    return descriptor


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock for this process alone without waiting, or ``shared`` with waiting; return False if another has it.

    True also where files cannot be locked: then the content of the lock file decides.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _write(descriptor: int, content: dict[str, Any]) -> None:
    text = json.dumps(content).encode()
    # Never empty in between: other processes read it to name the holder.
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text)
    os.ftruncate(descriptor, len(text))


def _read(descriptor: int) -> dict[str, Any]:
    """Return the content of a lock file, an empty dict if it is damaged."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_there(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except OSError:
        return False


def _is_alive(holder: dict[str, Any]) -> bool:
    """Return whether the process that a lock file names may still run."""
    pid, host = holder.get("pid"), holder.get("host")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0 or not isinstance(host, str):
        return False
    if host != socket.gethostname():
        job = os.environ.get("SLURM_JOB_ID")
        # A job that was requeued after its machine failed comes back under its number, elsewhere.
        return job is None or holder.get("job") != job
    if pid == os.getpid():
        return False  # An earlier run of this very process, for example in a notebook.
    if not _runs(pid):
        return False
    # The number may have been given to another process since.
    started = holder.get("started")
    return started is None or started == _start_of(pid)


def _runs(pid: int) -> bool:
    """Return whether there is a process of this number, of any user."""
    if sys.platform == "win32":  # where signal 0 is Ctrl-C and would be sent
        return _runs_on_windows(pid)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _runs_on_windows(pid: int) -> bool:
    import ctypes

    kernel: Any = ctypes.windll.kernel32  # pyrefly: ignore[missing-attribute]
    handle = kernel.OpenProcess(_MAY_ASK, False, pid)
    if not handle:
        return kernel.GetLastError() == _DENIED
    try:
        code = ctypes.c_ulong()
        return bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == _STILL_ACTIVE
    finally:
        kernel.CloseHandle(handle)


def _start_of(pid: int) -> str | None:
    """Return when a process of this machine began, in ticks since its boot; None if the system does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return words.rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _release_in_child() -> None:
    """Release the locks in a forked process: a loader that outlives its parent would keep them."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
