"""How much memory this process can still take. Standard library only."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Return the bytes that this process can still take, None where the system does not say.

    The least of what the machine has left, what its container leaves it (a cgroup of either version), and what
    ``ulimit -v`` allows.
    """
    known = [*_machine(), *_containers(), *_limit()]
    return max(0, min(known)) if known else None


def _machine() -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _containers() -> Iterator[int]:
    """Yield what each group that this process is in leaves free; a group may be limited by any above it."""
    for folder in _groups():
        for most, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):  # "max", or files that are not there
                limit = int((folder / most).read_text())
                yield limit - int((folder / used).read_text()) + _statistic(folder, cache)


def _groups() -> Iterator[Path]:
    with suppress(OSError):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = _CGROUP / "memory" if controllers else _CGROUP
            inner = root / group.lstrip("/")
            # Within a container its own group is the root, whatever the name says.
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _statistic(folder: Path, name: str) -> int:
    """Return a line of ``memory.stat``: files that the system keeps in memory are given up when it is needed."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _limit() -> Iterator[int]:
    if resource is None:
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, IndexError):
            pages = int((_PROC / "self/statm").read_text().split()[0])
            yield most - pages * os.sysconf("SC_PAGE_SIZE")
