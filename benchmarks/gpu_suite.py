"""All that a GPU has to show, in one go: numerics, waits, compilation, times beside MONAI, memory beside the plan.

    python benchmarks/gpu_suite.py [--minutes 8] [--device auto|cpu|cuda] [--only PART …] [-o DIR] [--tiny]

Run it in the repository's root on any machine with CUDA. Each part is a process of its own with a time of its own:
checks run several at a time and first, then the parts that measure run one after another. A part whose time is up stops
between two rounds, and one that does not stop is ended; what it had measured counts. No part begins when all the time
is over, and parts that were not reached are listed as such. ``gpu_suite.json`` and ``gpu_suite.md`` are written after
every part; the last line of stdout is the JSON object, and the exit code is 1 if a part failed. Without CUDA the same
parts run on the CPU, which is only useful with ``--tiny``.

Tolerances: outputs and gradient norms of every network within 1e-3 of the CPU in float32 without TF32; tokens changed
by rounding at most one in 10,000; no wait for the device in losses and samplers; at most two graph breaks; measured
memory at most what the plan says.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]

from _gpu_checks import PARTS as CHECKS  # noqa: E402
from _gpu_report import markdown  # noqa: E402

Found = dict[str, Any]


CHECK_SECONDS, COMPARE_SECONDS, SHIPPED_SECONDS = 100.0, 40.0, 14.0
"""What one part may take, its imports included."""
GRACE = 8.0
"""Seconds after which a part that should have stopped by itself is ended."""


def measurements() -> dict[str, Any]:
    """Return the parts that measure, by name."""
    from _gpu_times import parts

    return parts()


def seconds_of(name: str) -> float:
    """Return what the part ``name`` may take."""
    if name in CHECKS:
        return CHECK_SECONDS
    return SHIPPED_SECONDS if name.startswith("shipped_") else COMPARE_SECONDS


def run_part(name: str, device: str, tiny: bool, seconds: float) -> Found:
    """Run one part in this process; it stops by itself after so many seconds."""
    start, found = time.perf_counter(), {"ok": True}
    try:
        if name in CHECKS:
            found = CHECKS[name](device)
        else:
            from _gpu_times import Clock

            clock = Clock(device, tiny, seconds)
            found = clock.found
            measurements()[name](clock)
    except Exception as error:
        found |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:1500]}
        found["traceback"] = traceback.format_exc()[-2500:]
    return found | {"total_seconds": round(time.perf_counter() - start, 1)}


def spawn(name: str, device: str, tiny: bool, seconds: float) -> Found:
    """Run one part in a process of its own; of one that has to be ended, return what it had printed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--device", device]
    command += ["--part-seconds", str(seconds), *(["--tiny"] if tiny else [])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ} if device == "cpu" else dict(os.environ)
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + GRACE, env=environment
        )
        said, failed = ran.stdout, {"error": ran.stderr[-2000:], "code": ran.returncode}
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        failed = {"error": f"ended after {seconds + GRACE:.0f} s"}
    try:
        found = json.loads(said.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"ok": False, **failed}
    return found if "total_seconds" in found else {**found, "ok": False, **failed}


class Suite:
    """The parts that are run, within a time, and what they found.

    Args:
        device: ``cpu`` or ``cuda``.
        tiny: at the sizes of tests.
        seconds: after which no part begins.
        folder: where the results go.
        jobs: checks at a time; 0 runs every part in this process, which spares the imports, without a time of its own.
    """

    def __init__(self, *, device: str, tiny: bool, seconds: float, folder: Path, jobs: int) -> None:
        self.device = device
        self.tiny = tiny
        self.seconds = seconds
        self.folder = folder
        self.jobs = jobs
        self.began = time.monotonic()
        self.results: dict[str, Found] = {}

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def run(self, chosen: list[str]) -> None:
        """Run the parts ``chosen``: checks together, measurements one by one."""
        checks = [name for name in chosen if name in CHECKS]
        with ThreadPoolExecutor(max(1, self.jobs)) as pool:
            list(pool.map(self._one, checks))
        for name in chosen:
            if name not in CHECKS:
                self._one(name)

    def _one(self, name: str) -> None:
        seconds = self.left if self.jobs == 0 else min(self.left, seconds_of(name))
        if seconds <= 0:
            self.results[name] = {"ok": None, "error": "not reached"}
        elif self.jobs == 0:
            self.results[name] = run_part(name, self.device, self.tiny, seconds)
        else:
            self.results[name] = spawn(name, self.device, self.tiny, seconds)
        self.write()

    def report(self) -> Found:
        """Return all that was found."""
        import torch

        return {
            "name": "gpu_suite",
            "device": self.device,
            "gpu": torch.cuda.get_device_name() if self.device == "cuda" else None,
            "tiny": self.tiny,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "seconds": round(time.monotonic() - self.began, 1),
            "failed": sorted(name for name, found in self.results.items() if found["ok"] is False),
            "not_reached": sorted(name for name, found in self.results.items() if found["ok"] is None),
            "parts": dict(sorted(self.results.items())),
        }

    def write(self) -> None:
        """Write both files."""
        report = self.report()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu_suite.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (self.folder / "gpu_suite.md").write_text(markdown(report), encoding="utf-8")


def main() -> int:
    """Run the parts asked for and write what they found."""
    parser = argparse.ArgumentParser(prog="gpu_suite.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins afterwards")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="checks at a time")
    parser.add_argument(
        "-o", "--output-dir", type=Path, default=Path("outputs/gpu_suite"), help="for the results"
    )
    parser.add_argument("--tiny", action="store_true", help="at the sizes of tests")
    parser.add_argument("--in-process", action="store_true", help="all parts in this process")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--part-seconds", type=float, default=1e9, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from prod9.system.waiting import limit_spinning

    limit_spinning()  # as the commands do
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if args.part:
        print(json.dumps(run_part(args.part, device, args.tiny, args.part_seconds)), flush=True)
        return 0
    known = [*CHECKS, *measurements()]
    if unknown := set(args.only or ()) - set(known):
        parser.error(f"--only: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    suite = Suite(
        device=device,
        tiny=args.tiny,
        seconds=60 * args.minutes,
        folder=args.output_dir,
        jobs=0 if args.in_process else args.jobs,
    )
    suite.run(args.only or known)
    suite.write()
    report = json.loads((args.output_dir / "gpu_suite.json").read_text(encoding="utf-8"))
    print(json.dumps(report), flush=True)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
