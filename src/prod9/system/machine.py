"""The part of its machine that this process may use: cores, memory, user name, home. Standard library only.

A container or a batch job gives a process less than the host has, by control groups of either version and by the
affinity of the scheduler; the smallest limit on the way up to the root holds.
"""

import getpass
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prod9.errors import ConfigError

_ROOT = Path("/")
_NO_LIMIT = 2**60
"""Control groups of version 1 write a number near 2**63 where there is no limit."""


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, None if the system does not tell. available: without swapping anything out."""

    total: int | None
    available: int | None


def cores(root: Path = _ROOT) -> int:
    """Return how many cores this process can keep busy; a share of a core counts as one.

    root: where ``/proc`` and ``/sys`` are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    allowed = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(share) for share in _cpu_shares(root))]))


def memory(root: Path = _ROOT) -> Memory:
    """Return the memory of the machine, or of the control group where that is less."""
    total, available = _physical(root)
    for limit, used in _memory_limits(root):
        left = max(0, limit - used)
        total = limit if total is None else min(total, limit)
        available = left if available is None else min(available, left)
    return Memory(total, available)


def is_busy(root: Path = _ROOT) -> bool:
    """Return whether other work needs more than all cores of the machine, now and during the last minute.

    False if the system does not tell (Linux does).
    """
    words = _words(root / "proc/loadavg")  # "5.91 3.20 1.41 7/412 30521": averages, running/all, last process
    try:
        last_minute, running = float(words[0]), int(words[3].split("/")[0]) - 1  # this process runs, too
    except (IndexError, ValueError):
        return False
    return min(last_minute / 1.5, running) > (os.cpu_count() or 1)


def ensure_user_name() -> None:
    """Set a user name in the environment if the user id has none, as in many containers.

    MONAI and torch ask for one when they are imported and would fail with a KeyError.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        number = getattr(os, "getuid", lambda: 0)()
        os.environ["USER"] = os.environ["LOGNAME"] = f"user{number}"


def home() -> Path | None:
    """Return the user's home folder, None if neither HOME nor the system's list of users names one."""
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def expand(path: str | Path) -> Path:
    """Return ``path`` with the home folder for a leading ``~``; raises ConfigError where there is none.

    A name that starts with ``~`` and is no user's stays as it is, as in a shell.
    """
    path = Path(path)
    try:
        return path.expanduser()
    except (RuntimeError, KeyError) as error:
        if path.parts[0] != "~":
            return path
        raise ConfigError(
            f"{path}: expected a home folder for ~, got none, since HOME is not set and the system knows no user "
            f"{getattr(os, 'getuid', lambda: '')()}; set HOME, or write the whole path."
        ) from error


def _physical(root: Path) -> tuple[int | None, int | None]:
    known = getattr(os, "sysconf_names", {})  # absent on Windows; macOS lacks the second
    sizes: list[int | None] = []
    for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"):
        try:
            size = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") if name in known else 0
        except (ValueError, OSError):
            size = 0
        sizes.append(size if size > 0 else None)
    reclaimable = _table(root / "proc/meminfo").get("MemAvailable:")
    return sizes[0], sizes[1] if reclaimable is None else reclaimable * 1024


def _cpu_shares(root: Path) -> Iterator[float]:
    """Yield the cores of each limit: quota over period."""
    for group in _groups(root, None):
        words = _words(group / "cpu.max")
        if len(words) == 2:
            yield from _share(words[0], words[1])
    for group in _groups(root, "cpu"):
        quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
        if quota and period:
            yield from _share(quota[0], period[0])


def _share(quota: str, period: str) -> Iterator[float]:
    if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
        yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield each limit in bytes, and the bytes used of it that dropping caches would not free."""
    for group in _groups(root, None):
        for name in ("memory.max", "memory.high"):
            yield from _limit(group / name, group / "memory.current", group / "memory.stat", "inactive_file")
    for group in _groups(root, "memory"):
        used, stat = group / "memory.usage_in_bytes", group / "memory.stat"
        yield from _limit(group / "memory.limit_in_bytes", used, stat, "total_inactive_file")


def _limit(limit: Path, used: Path, stat: Path, cache: str) -> Iterator[tuple[int, int]]:
    there = _number(limit)
    if there is not None and there < _NO_LIMIT:
        yield there, max(0, (_number(used) or 0) - _table(stat).get(cache, 0))


def _groups(root: Path, controller: str | None) -> Iterator[Path]:
    """Yield the folders of the control group of this process and of all above it.

    controller: of version 1; None for the one tree of version 2. In a container the path may be that on the host,
    which is not there: then the mounted root is the container's own group.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller is None:
            tops = [mounts, mounts / "unified"] if number == "0" and not names else []
        else:
            tops = [mounts / controller, mounts / names] if controller in names.split(",") else []
        for top in dict.fromkeys(tops):
            place = top / path.strip().lstrip("/")
            while place != top and top in place.parents:
                yield place
                place = place.parent
            yield top


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _read(path).split()


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
