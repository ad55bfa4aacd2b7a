"""Guard: quick benchmarks against the ratios that are committed; under four minutes.

    python benchmarks/quick.py [--update] [--threads N] [--clock cpu|wall]

Runs the benchmarks of ``results/quick.json`` at their quick size, a process each, and compares the ratios that stand
there. A ratio that fell by more than 25% fails; one that rose by as much is worth committing. ``--update`` writes what
was measured. Ratios of two programs in one process hold on other machines roughly; times do not, and are not compared.
CPU time of one thread is compared, since other programs disturb it least. In two runs on a busy machine the ratios of
the autoencoder differed by a tenth at most, those of the sampler by up to 30%: means of both runs are committed there.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "quick.json"
MOST = 0.25
"""The share of a ratio that may be lost."""
SECONDS = 110
"""Of CPU time for one benchmark and each of its threads; a quick one takes at most 60."""

Ratios = dict[str, dict[str, float]]


def measure(name: str, threads: int, clock: str) -> dict[str, float]:
    """Return the ratios that ``name`` prints at its quick size."""
    how = ["--quick", "--threads", str(threads), "--clock", clock]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * threads, SECONDS * threads))

    before = _seconds_of_children()
    ran = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *how],
        capture_output=True, text=True, check=True, preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    print(f"{_seconds_of_children() - before:.0f} s of CPU time", flush=True)
    return json.loads(ran.stdout.splitlines()[-1])["ratios"]


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def verdict(before: float, now: float) -> str:
    """Return ``slower``, ``faster`` or ``as before``."""
    if now < (1 - MOST) * before:
        return "slower"
    return "faster" if now > (1 + MOST) * before else "as before"


def compare(committed: Ratios, measured: Ratios) -> tuple[list[str], bool]:
    """Return a line for each committed ratio, and whether none is slower or missing."""
    lines, held = [], True
    for name, ratios in committed.items():
        for key, before in ratios.items():
            now = measured.get(name, {}).get(key)
            word = "missing" if now is None else verdict(before, now)
            held = held and word not in ("slower", "missing")
            lines.append(
                f"{name} {key}: {before:.3g} committed, {now if now is None else f'{now:.3g}'} now, {word}"
            )
    return lines, held


def main() -> int:
    """Run the quick benchmarks and compare."""
    parser = argparse.ArgumentParser(prog="quick.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the ratios that were measured")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch CPU threads, as of the committed ratios"
    )
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    args = parser.parse_args()
    committed: Ratios = json.loads(COMMITTED.read_text(encoding="utf-8"))
    measured: Ratios = {}
    for name in committed:
        print(f"== {name}", flush=True)
        try:
            measured[name] = measure(name, args.threads, args.clock)
        except subprocess.CalledProcessError as error:
            out_of_time = error.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
            print(
                f"ended after {SECONDS * args.threads} s of CPU time" if out_of_time else error.stderr[-2000:]
            )
    lines, held = compare(committed, measured)
    print("\n".join(lines))
    if any(key not in measured.get(name, {}) for name, ratios in committed.items() for key in ratios):
        return 1
    if args.update:
        kept = {
            name: {key: round(measured[name][key], 3) for key in ratios} for name, ratios in committed.items()
        }
        COMMITTED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0 if held or args.update else 1


if __name__ == "__main__":
    sys.exit(main())
