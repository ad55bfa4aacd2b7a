"""Which processes are writing into a folder of results: locks show it, and the system frees them with the process."""

import os
import secrets
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PREFIX, _SUFFIX = ".tmp-", "-writer"


class Writer:
    """Registers this process as one that writes into ``folder``, until :meth:`leave`.

    It holds a lock on an empty hidden file. The file of a killed process is deleted by the next call of
    :meth:`others`. Call all methods with the folder's own lock held. On systems without such locks no other
    process is ever found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}"
        self._descriptor = None if fcntl is None else _locked(self._path)

    def others(self) -> bool:
        """Return whether another process is writing there now."""
        return any(_is_held(path) for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}") if path != self._path)

    def leave(self) -> None:
        """End the registration."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def sweep(folder: Path, names: set[str]) -> None:
    """Delete incomplete copies of ``names`` (plain file names) that killed writers left in ``folder``."""
    for orphan in folder.glob(f"{_PREFIX}*"):
        _, _, name = orphan.name.removeprefix(_PREFIX).partition("-")
        if name in names:
            orphan.unlink(missing_ok=True)


def _locked(path: Path) -> int | None:
    assert fcntl is not None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a filesystem without locks
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    return descriptor


def _is_held(path: Path) -> bool:
    """Return whether the process that made ``path`` is alive; otherwise delete the file."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # deleted meanwhile, or owned by another user
        return path.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
