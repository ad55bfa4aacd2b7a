"""Changed files for every reader: only errors of prod9 may come, within 2 seconds and 1 GiB."""

import json
import math
import os
import random
import resource
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 5.0
LIMIT_BYTES = 1 << 30
_PATIENCE_S = 30.0
_BATCH = 250

NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    2**70,
    -(2**63),
    1.5,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
    True,
    None,
]
TEXTS = [
    "", " ", "\x00", "\x1b[2J", "../../evil", "/etc/passwd", "[/]", "[bold]", "<script>", "=1+1", "x" * 300, "x" * 5000,
    "ä" * 100, "²", "NaN", "T1", "null", "${HOME}", "\ud800",
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Something that reads. write: puts a changed input into a folder. read: reads it there."""

    name: str
    write: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]
    share: float = 1.0


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, cut, repeated or replaced by extreme numbers."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not content:
            content += rng.randbytes(rng.randrange(1, 64))
            continue
        place, kind = rng.randrange(len(content)), rng.randrange(7)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place : place + rng.randrange(1, 16)] = rng.randbytes(rng.randrange(0, 16))
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            content[place : place + 4] = struct.pack("<f", rng.choice([math.nan, math.inf, 1e38, -1e38, 0.0]))
        elif kind == 4:
            content[place : place + 8] = struct.pack("<q", rng.choice([-1, 2**63 - 1, -(2**63), 2**31, 0]))
        elif kind == 5:
            size = rng.randrange(1, 64)
            content[place:place] = content[place : place + size] * rng.choice([1, 2, 50])
        else:
            content[place:place] = rng.choice(TEXTS).encode(errors="replace")
    return bytes(content)


def vary(value: Any, rng: random.Random, chance: float = 0.15) -> Any:
    """Return nested plain values with some of them replaced, lost, doubled or nested deeper."""
    if rng.random() < chance:
        return anything(rng)
    if isinstance(value, dict):
        items = [(k, vary(v, rng, chance)) for k, v in value.items() if rng.random() > chance / 4]
        if rng.random() < chance / 2:
            items.append((rng.choice(TEXTS), anything(rng)))
        return dict(items)
    if isinstance(value, list):
        items = [vary(item, rng, chance) for item in value if rng.random() > chance / 4]
        return items * 2 if rng.random() < chance / 4 else items
    return value


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Return any plain value."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3 and depth < 4:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 4 and depth < 4:
        return {rng.choice(TEXTS): anything(rng, depth + 1) for _ in range(rng.randrange(3))}
    return rng.randrange(-5, 50)


def as_json(value: Any) -> bytes:
    """Return ``value`` as JSON, its odd text included."""
    return json.dumps(value).encode()


def run_reader(
    reader: Reader,
    folder: Path,
    *,
    wanted: int,
    done: int,
    keep: Callable[[dict[str, Any]], None],
    ends: float,
) -> None:
    """Read ``wanted`` inputs, those ``done`` before included, until the time ``ends``.

    In forked processes that are bounded in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = done
    while number < wanted and time.monotonic() < ends:
        last = min(wanted, number + _BATCH)
        counts = _batch(reader, folder, number, last)
        number = counts.pop("next")
        keep({"reader": reader.name, "inputs": number, **counts})


def _batch(reader: Reader, folder: Path, first: int, last: int) -> dict[str, Any]:
    """Read the inputs from ``first`` to ``last`` in one forked process; one that it dies or hangs on is a fault."""
    report = folder / "report.jsonl"
    report.write_text("")
    pid = os.fork()
    if pid == 0:
        try:
            _work(reader, folder, report, first, last)
        finally:
            os._exit(0)
    begun = time.monotonic()
    size, ended = -1, False
    while not ended:
        ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        now = report.stat().st_size
        if now != size:
            size, begun = now, time.monotonic()
        elif time.monotonic() - begun > _PATIENCE_S:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    results = [json.loads(line) for line in report.read_text().splitlines()]
    counts = {
        "accepted": sum(r["what"] == "accepted" for r in results),
        "refused": sum(r["what"] == "refused" for r in results),
        "faults": [r for r in results if r["what"] == "fault"],
        "next": first + len(results),
    }
    if counts["next"] < last:  # it never came to the end of this one
        counts["faults"].append(
            {"what": "fault", "number": counts["next"], "kind": "killed, or hung for 30 s"}
        )
        counts["next"] += 1
    return counts


def _work(reader: Reader, folder: Path, report: Path, first: int, last: int) -> None:
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with report.open("a", encoding="utf-8") as lines:
        for number in range(first, last):
            result = {"number": number, **_one(reader, folder, number)}
            lines.write(json.dumps(result) + "\n")
            lines.flush()


def _one(reader: Reader, folder: Path, number: int) -> dict[str, Any]:
    from prod9.errors import Prod9Error

    rng = random.Random(f"{reader.name} {number}")
    reader.write(folder, rng)
    now = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    began = time.process_time()
    try:
        reader.read(folder)
        what, kind = "accepted", ""
    except Prod9Error as error:
        what, kind = "refused", ""
        if isinstance(error.__cause__, MemoryError):
            what, kind = "fault", f"over 1 GiB: {error}"
    except BaseException as error:
        what, kind = "fault", f"{type(error).__name__}: {error}"
    took = time.process_time() - began
    resource.setrlimit(
        resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1])
    )
    if took > LIMIT_S:
        what, kind = "fault", f"took {took:.1f} s; {kind}"
    return {"what": what, "kind": kind[:200]} if kind else {"what": what}


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (read tens of thousands of times)
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
