"""One training step and one generated volume of every shipped BraTS configuration, at its real size on a CPU.

    python benchmarks/full_size.py [--only NAME …] [--part PART …] [--batch-size N] [--sampler-steps N] [--most-gib G]
                                   [--minutes M] [--redo] [--list]

Each part is a process of its own, the smallest first. What was measured stays in ``benchmarks/results/full_size/``, one
JSON file for each configuration, so that the next call goes on; ``benchmarks/results/full_size.md`` is their table:
time, peak memory, FLOPs and tokens against the estimate of ``prod9 plan`` for the same batch on a CPU. Networks are
untrained and volumes are random heads; neither changes what a step costs. Exits with 1 where a bound is broken: the
memory of a step, the estimate, or the memory of decoding a scan in slabs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]

RESULTS = ROOT / "benchmarks" / "results" / "full_size"
MOST_GIB = 24.0
"""What every step and volume has to fit in, imports aside."""
TOLERANCE = 0.15
"""How far the estimate may be from the measured peak."""
A100_FLOPS, UTILISATION = 312e12, 0.4
"""Peak of an A100 in bfloat16, and the share of it that is assumed in training."""
EXACT = ("maskgit/brats/stage1/fsq_x8", "maisi/autoencoder/brats")
"""Autoencoders that also decode a whole scan of 240 × 240 × 155 voxels in slabs, within ``EXACT_GIB``."""
EXACT_GIB = 3.0
PARTS = ("train", "generate", "exact")
Found = dict[str, Any]
Results = dict[str, dict[str, Found]]
"""By configuration and part."""


def plan(only: list[str] | None, parts: list[str]) -> list[tuple[str, str, float]]:
    """Return (part, configuration, GiB planned for its training step of a batch of one), the smallest first."""
    from _shipped import names, needs_of, of_batch

    from prod9.planning.choose import peak_bytes

    chosen = [name for name in names() if only is None or name in only]
    size = {name: peak_bytes(needs_of(name, of_batch(1)), "cpu") / 1024**3 for name in chosen}
    ordered = sorted(chosen, key=size.__getitem__)
    return [
        (part, name, size[name] if part == "train" else 0.0)
        for part in parts
        for name in ordered
        if part != "exact" or name in EXACT
    ]


def spawn(part: str, name: str, args: argparse.Namespace) -> Found:
    """Run one part in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "_full_size.py"), part, name]
    command += ["--batch-size", str(args.batch_size), "--threads", str(args.threads)]
    command += ["--limit-gib", str(args.most_gib)]
    if args.sampler_steps is not None:
        command += ["--sampler-steps", str(args.sampler_steps)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"error": (ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"])[-1][:300]}


def place_of(name: str, folder: Path = RESULTS) -> Path:
    """Return the file of a configuration."""
    return folder / f"{name.replace('/', '.')}.json"


def load(folder: Path = RESULTS) -> Results:
    """Return the results so far."""
    files = sorted(folder.glob("*.json"))
    return {found["name"]: found["parts"] for found in (json.loads(file.read_text()) for file in files)}


def save(results: Results, name: str, folder: Path = RESULTS) -> None:
    """Write the results of a configuration, and the table of all."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {"name": name, "parts": results[name]}
    place_of(name, folder).write_text(json.dumps(written, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    folder.with_suffix(".md").write_text(table(results), encoding="utf-8")


def hours_on_a100(found: Found) -> float:
    """Return the hours of a whole training on one A100, from the FLOPs of its steps alone."""
    per_sample = found["flops"] / found["batch_size"]
    return per_sample * found["samples_per_step"] * found["steps"] / (A100_FLOPS * UTILISATION) / 3600


HEAD = """# Full size on a CPU

Written by `make full-size`: every shipped BraTS configuration at its real size, in float32 and one process for each
part. Peak: the memory of the process above what its imports take, beside what `prod9 plan` expects of activations and
state for the same batch on a CPU. Seconds: CPU time of the process on {threads}, which other work on the machine
changes little. A100: FLOPs of the configured batches and steps on an A100 (312 TFLOP/s in bfloat16) at 40%, estimated.
"""


def table(results: Results) -> str:
    """Return the Markdown page of ``results``."""
    rows = [(name, part, found) for name, parts in sorted(results.items()) for part, found in parts.items()]
    threads = {found.get("threads", 1) for _, _, found in rows} or {1}
    said = " and ".join("one thread" if number == 1 else f"{number} threads" for number in sorted(threads))
    lines = [*HEAD.format(threads=said).splitlines(), "", "## One training step", ""]
    lines += [
        "| configuration | batch | tokens or volume | M parameters | TFLOP | GiB planned | GiB measured | planned / "
        "measured | s | hours on an A100 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part, found in rows:
        if part == "train" and "error" not in found:
            lines.append(_train_row(name, found))
    lines += ["", "## One volume", ""]
    lines += ["Generated or reconstructed with the configured sampler.", ""]
    lines += ["| configuration | voxels | steps | TFLOP | GiB | s |", "|---|---|---|---|---|---|"]
    for name, part, found in rows:
        if part != "train" and "error" not in found:
            lines.append(_volume_row(name, part, found))
    missing = [
        f"- `{name}`, {part}: {found['error'].rstrip('.')}." for name, part, found in rows if "error" in found
    ]
    return "\n".join([*lines, *(["", "## Not measured", "", *missing] if missing else [])]) + "\n"


def _train_row(name: str, found: Found) -> str:
    sides = found["tokens"] or found["voxels"]
    size = " × ".join(map(str, sides)) if sides else "volumes"
    ratio = found["planned_gib"] / found["peak_gib"]
    return (
        f"| {name} | {found['batch_size']} | {size} | {found['parameters'] / 1e6:.1f} | {found['flops'] / 1e12:.2f} | "
        f"{found['planned_gib']:.2f} | {found['peak_gib']:.2f} | {ratio:.2f} | {found['cpu_seconds']:.0f} | "
        f"{hours_on_a100(found):.0f} |"
    )


def _volume_row(name: str, part: str, found: Found) -> str:
    what = name if part == "generate" else f"{name}, `exact`"
    taken, wanted = found.get("sampler_steps"), found.get("configured_steps")
    steps = "" if wanted is None else str(wanted) if taken == wanted else f"{taken} of {wanted}"
    return (
        f"| {what} | {' × '.join(map(str, found['voxels']))} | {steps} | {found['flops'] / 1e12:.2f} | "
        f"{found['peak_gib']:.2f} | {found['cpu_seconds']:.0f} |"
    )


def verdicts(results: Results) -> list[str]:
    """Return what breaks a bound: memory of a step, the estimate, decoding in slabs."""
    broken = []
    for name, parts in sorted(results.items()):
        for part, found in parts.items():
            if "error" in found:
                broken.append(f"{name}, {part}: {found['error']}")
                continue
            most = EXACT_GIB if part == "exact" else MOST_GIB
            if found["peak_gib"] > most:
                broken.append(
                    f"{name}, {part}: expected at most {most:g} GiB, got {found['peak_gib']:.1f} GiB"
                )
            if not found["finite"]:
                broken.append(f"{name}, {part}: expected finite numbers, got others")
            if part == "train" and abs(found["planned_gib"] / found["peak_gib"] - 1) > TOLERANCE:
                broken.append(
                    f"{name}: planned {found['planned_gib']:.2f} GiB, measured {found['peak_gib']:.2f}"
                )
    return broken


def again(found: Found | None, args: argparse.Namespace) -> bool:
    """Return whether a part is to be run: not measured yet, or with fewer sampler steps than now."""
    if found is None or "error" in found or args.redo:
        return True
    if found["batch_size"] != args.batch_size if "batch_size" in found else False:
        return True
    wanted = found.get("configured_steps")
    asked = wanted if wanted is None or args.sampler_steps is None else min(wanted, args.sampler_steps)
    return wanted is not None and found["sampler_steps"] < asked


def main() -> int:
    """Run the parts that are not done yet."""
    parser = argparse.ArgumentParser(prog="full_size.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these configurations alone")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sampler-steps", type=int, default=None, help="at most; the configured number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most-gib", type=float, default=MOST_GIB, help="parts that need more are left out")
    parser.add_argument("--minutes", type=float, default=None, help="start no part after this time")
    parser.add_argument("--redo", action="store_true", help="also what is done")
    parser.add_argument("--list", action="store_true", help="print what would run")
    args = parser.parse_args()
    from _shipped import names

    if unknown := set(args.only or ()) - set(names()):
        parser.error(f"--only: expected some of {', '.join(names())}, got {', '.join(sorted(unknown))}")
    began, results = time.monotonic(), load()
    for part, name, gib in plan(args.only, args.part):
        if not again(results.get(name, {}).get(part), args):
            continue
        late = args.minutes is not None and time.monotonic() - began > 60 * args.minutes
        if args.list or late or gib > args.most_gib:
            print(f"{name}, {part}: not run" + (f", planned {gib:.1f} GiB" if gib else ""))
            continue
        found = spawn(part, name, args) | {"threads": args.threads}
        results.setdefault(name, {})[part] = found
        print(f"{name}, {part}: {json.dumps(found)}", flush=True)
        save(results, name)
    broken = verdicts(results)
    print("\n".join(broken) or "all within their bounds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
