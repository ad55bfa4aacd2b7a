"""Episodes of kills: a job is killed some times, goes on each time, and must end as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.jobs import Job, clear, damaged, run_forked, strays

_POLL_S = 0.0005
_FIRST_S = 0.05


@dataclass
class Episode:
    """What came of one job. aimed: kills at a moment when a temporary file existed. faults: what should not be."""

    job: str
    number: int
    kills: int = 0
    aimed: int = 0
    faults: list[str] = field(default_factory=list)


def reference(job: Job, folder: Path) -> tuple[str, float]:
    """Return the digest of a job that nobody kills, and the seconds that it takes."""
    clear(folder)
    began = time.monotonic()
    code = _wait(run_forked(job.start, folder, folder.with_suffix(".log")), job.minutes * 60)
    if code != 0:
        raise RuntimeError(f"{job.name}: exit code {code}; see {folder.with_suffix('.log')}")
    return job.digest(folder), time.monotonic() - began


def episode(job: Job, number: int, folder: Path, *, expected: str, seconds: float, kills: int) -> Episode:
    """Kill ``job`` up to ``kills`` times, a third of them while a temporary file is there, and let it end."""
    rng = random.Random(f"{job.name} {number}")
    result = Episode(job.name, number)
    clear(folder)
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    for _ in range(kills):
        pid = run_forked(job.start, folder, log)
        aimed = rng.random() < 0.34
        # Most of a job is over before its middle, since it starts where it was killed.
        died = _kill_at_write(pid, folder, rng, seconds) if aimed else _kill_at_random(pid, rng, seconds)
        if not died:
            break  # it was faster
        result.kills += 1
        result.aimed += aimed
        result.faults += [f"damaged after a kill: {fault}" for fault in damaged(folder)]
    code = _wait(run_forked(job.start, folder, log), job.minutes * 60)
    if code != 0:
        result.faults.append(f"did not go on: exit code {code}: {log.read_text(errors='replace')[-300:]}")
        return result
    if job.digest(folder) != expected:
        result.faults.append("ended elsewhere than without kills")
    result.faults += [f"left over: {path}" for path in strays(folder)]
    return result


def _kill_at_random(pid: int, rng: random.Random, seconds: float) -> bool:
    time.sleep(_FIRST_S + rng.random() * seconds)
    return _kill(pid)


def _kill_at_write(pid: int, folder: Path, rng: random.Random, seconds: float) -> bool:
    """Kill the process some time after one of the next temporary files appears, before it can be renamed."""
    skip, ends = rng.randrange(6), time.monotonic() + seconds
    seen: set[str] = set()
    while time.monotonic() < ends:
        for path in _temporary(folder):
            if path not in seen:
                seen.add(path)
                if len(seen) > skip:
                    time.sleep(rng.random() * 0.002)
                    return _kill(pid)
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(_POLL_S)
    return _kill(pid)


def _temporary(folder: Path) -> list[str]:
    found = []
    for root, _, names in os.walk(folder):
        found += [f"{root}/{name}" for name in names if name.startswith(".tmp-")]
    return found


def _kill(pid: int) -> bool:
    """Kill a process; return whether it still ran."""
    try:
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    except (ProcessLookupError, ChildProcessError):
        return False


def _wait(pid: int, seconds: float) -> int:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _kill(pid)
    return 98


def run_kills(
    jobs: list[Job],
    folder: Path,
    *,
    wanted: int,
    done: list[dict[str, Any]],
    keep: Callable[[dict[str, Any]], None],
    ends: float,
    each: int = 4,
) -> None:
    """Run episodes in turn until ``wanted`` kills are done or the time ``ends`` is reached.

    Those in ``done`` count; ``keep`` notes each.
    """
    numbers = {job.name: sum(entry["job"] == job.name for entry in done) for job in jobs}
    references: dict[str, tuple[str, float]] = {}
    total = sum(entry["kills"] for entry in done)
    while total < wanted:
        before = total
        for job in sorted(jobs, key=lambda job: numbers[job.name]):
            if total >= wanted or time.monotonic() > ends:
                return
            if job.name not in references:
                references[job.name] = reference(job, folder / "reference")
            expected, seconds = references[job.name]
            result = episode(
                job, numbers[job.name], folder / "episode", expected=expected, seconds=seconds, kills=each
            )
            numbers[job.name] += 1
            total += result.kills
            keep(asdict(result))
        if total == before:
            raise RuntimeError("no kill hit a running job: the machine is too fast or the jobs too short")
