"""Kill and fuzz prod9 for an hour or a night, and count what came of it.

    python -m tests.soak [--folder DIR] [--kills 200] [--inputs 100000] [--only kills|inputs] [--minutes M]

Everything done is noted in ``DIR/done.jsonl`` at once: stopped and started again, it goes on. The last line of stdout
is one JSON object with all counts; exit code 1 means that a promise did not hold. ``make soak`` is the full form;
``make test`` runs a minute of it. Every input is made again from its reader and number: ``--show READER NUMBER``.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--only", choices=["kills", "inputs"])
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="stop after so long; the next start goes on"
    )
    parser.add_argument("--show", nargs=2, metavar=("READER", "NUMBER"))
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "done.jsonl")
    ends = time.monotonic() + args.minutes * 60

    import torch

    torch.set_num_threads(1)
    import prod9.training.run  # noqa: F401 (what forked processes share)
    from tests.soak.jobs import jobs, prepare
    from tests.soak.readers import readers

    prepare(folder / "base")
    if args.show:
        return show(folder, readers(folder / "base"), *args.show)
    if args.only != "inputs":
        from tests.soak.kills import run_kills

        run_kills(
            jobs(folder / "base"),
            folder,
            wanted=args.kills,
            done=record.of("episode"),
            keep=record.note("episode"),
            ends=ends,
        )
    if args.only != "kills":
        from tests.soak.fuzz import run_reader

        found = readers(folder / "base")
        shares = sum(reader.share for reader in found)
        for reader in found:
            wanted = -(-args.inputs * reader.share // shares)
            done = max((e["inputs"] for e in record.of("inputs") if e["reader"] == reader.name), default=0)
            place = folder / "inputs" / reader.name.replace(" ", "-")
            run_reader(reader, place, wanted=int(wanted), done=done, keep=record.note("inputs"), ends=ends)
    counts = record.counts()
    print(json.dumps(counts), flush=True)
    return 1 if counts["faults"] else 0


def show(folder: Path, found: list[Any], name: str, number: str) -> int:
    """Make one input again, read it, and let the error through; the file stays in the folder that is printed."""
    import random

    reader = next(reader for reader in found if reader.name == name)
    place = folder / "shown"
    place.mkdir(exist_ok=True)
    reader.write(place, random.Random(f"{name} {number}"))
    print(place, reader.read(place))
    return 0


class Record:
    """What was done, a JSON object per line; the last line may be cut by a kill of the soak itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                self.entries.append(json.loads(line))
            except ValueError:
                continue

    def of(self, what: str) -> list[dict[str, Any]]:
        """Return the entries of one kind."""
        return [entry for entry in self.entries if entry["what"] == what]

    def note(self, what: str) -> Any:
        """Return what adds an entry of that kind, and says so."""

        def add(entry: dict[str, Any]) -> None:
            entry = {"what": what, **entry}
            self.entries.append(entry)
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            short = {k: v for k, v in entry.items() if k not in ("what", "faults")}
            print(f"{what}: {short}, {len(entry['faults'])} faults", file=sys.stderr, flush=True)

        return add

    def counts(self) -> dict[str, Any]:
        """Return all counts: kills by job, inputs by reader, faults by kind."""
        episodes, inputs = self.of("episode"), self.of("inputs")
        kills: dict[str, dict[str, int]] = {}
        for entry in episodes:
            row = kills.setdefault(entry["job"], {"episodes": 0, "kills": 0, "aimed": 0, "faults": 0})
            row["episodes"] += 1
            for name in ("kills", "aimed"):
                row[name] += entry[name]
            row["faults"] += len(entry["faults"])
        read: dict[str, dict[str, int]] = {}
        for entry in inputs:
            row = read.setdefault(entry["reader"], {"inputs": 0, "accepted": 0, "refused": 0, "faults": 0})
            row["inputs"] = entry["inputs"]
            for name in ("accepted", "refused"):
                row[name] += entry[name]
            row["faults"] += len(entry["faults"])
        kinds = Counter(
            f"{entry['reader']}: {fault['kind'].split(':')[0]}"
            for entry in inputs
            for fault in entry["faults"]
        )
        told = [f"{e['job']} {e['number']}: {fault}" for e in episodes for fault in e["faults"]]
        return {
            "kills": sum(row["kills"] for row in kills.values()),
            "aimed": sum(row["aimed"] for row in kills.values()),
            "inputs": sum(row["inputs"] for row in read.values()),
            "faults": sum(row["faults"] for row in (*kills.values(), *read.values())),
            "jobs": kills,
            "readers": read,
            "kinds": dict(kinds.most_common(50)),
            "episodes": told[:50],
        }


if __name__ == "__main__":
    sys.exit(main())
