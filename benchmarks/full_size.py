"""One training step and one generated volume of every shipped BraTS configuration, at its real size on a CPU.

    python benchmarks/full_size.py [--only NAME …] [--part PART …] [--batch-size N] [--sampler-steps N] [--most-gib G]
                                   [--minutes M] [--redo] [--list]

Parts: ``count`` adds up operations and bytes of a training step on tensors that have no memory, which takes seconds;
``train`` takes the step, ``generate`` makes a volume, and ``exact`` decodes a scan in slabs (``exact_bf16``: kept in
half precision), each in a process of its own, the smallest first. What was found stays in
``benchmarks/results/full_size/``, one JSON file for each configuration, so that the next call goes on;
``benchmarks/results/full_size.md`` is their table: time, peak memory, FLOPs and tokens against the estimate of
``prod9 plan`` for the same batch on a CPU. Networks are untrained and volumes are random heads; neither changes what a
step costs. Exits with 1 where a bound is broken: the memory of a step, the estimate, or the memory of decoding a scan
in slabs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]

RESULTS = ROOT / "benchmarks" / "results" / "full_size"
MOST_GIB = 24.0
"""What every step and volume has to fit in, imports aside."""
TOLERANCE = 0.15
"""How far an estimate may be from what was counted or measured."""
A100_FLOPS, UTILISATION = 312e12, 0.4
"""Peak of an A100 in bfloat16, and the share of it that is assumed in training."""
RELEASED = "maisi/autoencoder/brats_released_80gb"
EXACT = (
    "maskgit/brats/stage1/fsq_x8", "maskgit/brats/stage1/fsq_x8_80gb", "maskgit/brats/masks/stage1",
    "maisi/autoencoder/brats", RELEASED,
)  # fmt: skip
"""Autoencoders that also decode a whole scan of 240 × 240 × 155 voxels in slabs."""
MASKED = ("maskgit/brats/stage2_refiner/base",)
"""Configurations that compute inside the head alone; counted with full masks, a step takes more than it can."""
EXACT_GIB = 3.0
"""What that takes at most; the released network needs activations kept in bfloat16 for it."""
PARTS = ("count", "train", "generate", "exact", "exact_bf16")
UNCOUNTED = ("maisi/diffusion/brats_few_steps",)
"""Configurations that look at how many steps a sample takes, a value that tensors without memory lack."""
_ONLY = {"exact": EXACT, "exact_bf16": (RELEASED,)}
"""Parts that not every configuration has."""
Found = dict[str, Any]
Results = dict[str, dict[str, Found]]
"""By configuration and part."""


def plans(only: list[str] | None, batch_size: int) -> dict[str, Found]:
    """Return what the plan says of each configuration, the smallest first."""
    from _full_size import planned
    from _shipped import names

    found = {name: planned(name, batch_size) for name in names() if only is None or name in only}
    return dict(sorted(found.items(), key=lambda pair: pair[1]["gib"]))


def spawn(part: str, names: list[str], args: argparse.Namespace) -> Iterator[tuple[str, Found]]:
    """Run one part in a process of its own, and yield what it finds of each configuration as it comes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "_full_size.py"), part, *names]
    command += ["--batch-size", str(args.batch_size), "--threads", str(args.threads)]
    command += ["--limit-gib", str(args.most_gib)]
    if args.sampler_steps is not None:
        command += ["--sampler-steps", str(args.sampler_steps)]
    left = list(names)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                ((name, found),) = json.loads(line).items()
                left.remove(name)
                yield name, found
    for name in left:
        yield name, {"error": f"ended with {process.returncode}"}


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


def record(found: Results, folder: Path = RESULTS) -> None:
    """Add parts to the results, beside what other calls wrote meanwhile."""
    results = load(folder)
    for name, parts in found.items():
        results.setdefault(name, {}).update(parts)
        save(results, name, folder)


def hours_on_a100(flops: float, plan: Found) -> float:
    """Return the hours of a whole training on one A100, from the FLOPs of its steps alone."""
    per_sample = flops / plan["batch_size"]
    return per_sample * plan["samples_per_step"] * plan["steps"] / (A100_FLOPS * UTILISATION) / 3600


HEAD = """# Full size on a CPU

Written by `make full-size`: every shipped BraTS configuration at its real size, in float32. Planned: by the formulas
of `prod9 plan`, for the same batch on a CPU. Counted: operations, and the most bytes that weights, gradients, moments
and activations take together, added up on tensors without memory. Process: the peak of a whole process that takes the
step, libraries and workspaces of kernels included, as `prod9 plan` tells it for a CPU, and as it was measured. Seconds:
CPU time of the step on {threads}, on a machine with other work, which makes it up to a third longer. A100: FLOPs,
counted or else planned, of the configured batches and steps on an A100 (312 TFLOP/s in bfloat16) at 40%, estimated.
Empty cells were not measured yet.
"""


def table(results: Results) -> str:
    """Return the Markdown page of ``results``."""
    rows = [(name, part, found) for name, parts in sorted(results.items()) for part, found in parts.items()]
    threads = {found.get("threads", 1) for _, _, found in rows} or {1}
    said = " and ".join("one thread" if number == 1 else f"{number} threads" for number in sorted(threads))
    lines = [*HEAD.format(threads=said).splitlines(), "", "## One training step", ""]
    lines += [
        "| configuration | batch | tokens or volume | M parameters | TFLOP | GiB planned | counted | process planned "
        "| measured | planned / measured | s | hours on an A100 |",
        f"|{'---|' * 12}",
    ]
    for name, part, found in rows:
        if part == "plan":
            lines.append(_train_row(name, found, results[name]))
    lines += ["", "## One volume", "", "Generated or reconstructed with the configured sampler.", ""]
    lines += ["| configuration | voxels | steps | TFLOP | GiB measured | s |", "|---|---|---|---|---|---|"]
    for name, part, found in rows:
        if part not in ("plan", "count", "train") and "error" not in found:
            lines.append(_volume_row(name, part, found))
    missing = [
        f"- `{name}`, {part}: {found['error'].rstrip('.')}." for name, part, found in rows if "error" in found
    ]
    return "\n".join([*lines, *(["", "## Failed", "", *missing] if missing else [])]) + "\n"


def _train_row(name: str, plan: Found, parts: dict[str, Found]) -> str:
    count, taken = parts.get("count", {}), parts.get("train", {})
    gib, flops = count.get("counted_gib"), count.get("flops") or plan["flops"]
    planned, measured = plan["process_gib"], process_gib(taken) if "peak_gib" in taken else None
    cells = [
        name,
        plan["batch_size"],
        " × ".join(map(str, plan["tokens"] or plan["voxels"])),
        f"{plan['parameters'] / 1e6:.1f}",
        f"{flops / 1e12:.2f}" if flops else "",
        f"{plan['gib']:.2f}",
        f"{gib:.2f}" if gib else "",
        f"{planned:.2f}",
        f"{measured:.2f}" if measured else "",
        f"{planned / measured:.2f}" if measured else "",
        f"{taken['cpu_seconds']:.0f}" if measured else "",
        f"{hours_on_a100(flops, plan):.1f}" if flops else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _volume_row(name: str, part: str, found: Found) -> str:
    what = name + {"generate": "", "exact": ", `exact`"}.get(part, ", `exact` kept in bfloat16")
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
            elif part == "count" and "plan" in parts:
                plan = parts["plan"]
                if name not in MASKED:
                    broken += _differs(name, plan["gib"], "counted", found["counted_gib"])
                if plan["flops"] is not None:
                    teras = plan["flops"] / 1e12, found["flops"] / 1e12
                    broken += _differs(name, teras[0], "counted", teras[1], unit="TFLOP")
            elif part not in ("plan", "count"):
                broken += [f"{name}, {part}: {said}" for said in _of_run(name, part, found)]
                if part == "train" and "plan" in parts:
                    broken += _differs(name, parts["plan"]["process_gib"], "measured", process_gib(found))
    return broken


def process_gib(found: Found) -> float:
    """Return the peak of a whole process."""
    return found["import_gib"] + found["peak_gib"]


def _differs(name: str, planned: float, how: str, found: float, *, unit: str = "GiB") -> Iterator[str]:
    if abs(planned / found - 1) > TOLERANCE:
        yield f"{name}: planned {planned:.2f} {unit}, {how} {found:.2f}"


def _of_run(name: str, part: str, found: Found) -> Iterator[str]:
    in_slabs = part == "exact_bf16" or (part == "exact" and name != RELEASED)
    most = EXACT_GIB if in_slabs else MOST_GIB
    if found["peak_gib"] > most:
        yield f"expected at most {most:g} GiB, got {found['peak_gib']:.1f} GiB"
    if not found["finite"]:
        yield "expected finite numbers, got others"


def grouped(todo: list[tuple[str, str, float]]) -> list[tuple[str, list[str], float]]:
    """Return what one process does: all counts together, everything else one by one."""
    counts = [name for part, name, _ in todo if part == "count"]
    rest = [(part, [name], gib) for part, name, gib in todo if part != "count"]
    return [("count", counts, 0.0), *rest] if counts else rest


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
    began, said = time.monotonic(), plans(args.only, args.batch_size)
    record({name: {"plan": plan} for name, plan in said.items()})
    todo = [
        (part, name, plan["gib"] if part == "train" else 0.0)
        for part in args.part
        for name, plan in said.items()
        if name in _ONLY.get(part, said) and not (part == "count" and name in UNCOUNTED)
    ]
    for part, names_of_part, gib in grouped(todo):
        results = load()  # anew: another call may have measured some meanwhile
        left = [name for name in names_of_part if again(results[name].get(part), args)]
        late = args.minutes is not None and time.monotonic() - began > 60 * args.minutes
        if left and (args.list or late or gib > args.most_gib):
            why = f", planned {gib:.1f} GiB" if gib else ""
            print("\n".join(f"{name}, {part}: not run{why}" for name in left))
        elif left:
            for name, found in spawn(part, left, args):
                print(f"{name}, {part}: {json.dumps(found)}", flush=True)
                record({name: {part: found | {"threads": args.threads}}})
    results = load()
    broken = verdicts(results)
    print("\n".join(broken) or "all within their bounds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
