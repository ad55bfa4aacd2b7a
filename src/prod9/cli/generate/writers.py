"""Who is writing into a folder of results: told by locks, which the system frees when a process ends in any way."""

import os
import secrets
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PREFIX, _SUFFIX = ".tmp-", "-writer"


class Writer:
    """This process as one of those that write into ``folder``, until :meth:`leave`.

    It holds an empty hidden file with a lock. What a killed process left of its own is removed by the next one that
    asks. Call everything with the folder's own lock held. Where there are no such locks nobody is ever seen.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}"
        self._descriptor = None if fcntl is None else _locked(self._path)

    def others(self) -> bool:
        """Tell whether another process is writing there now."""
        return any(_is_held(path) for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}") if path != self._path)

    def leave(self) -> None:
        """Stop being one of them."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def sweep(folder: Path, names: set[str]) -> None:
    """Delete what killed writers left half-written of ``names`` (plain file names) in ``folder``."""
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
    """Tell whether the process that made ``path`` lives; otherwise delete it."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # gone by now, or of another user: then nothing is known of it
        return path.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
