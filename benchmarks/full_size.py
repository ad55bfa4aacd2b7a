"""One training step and one generated volume of every shipped BraTS configuration, at its real size on a CPU.

    python benchmarks/full_size.py [--only NAME …] [--limit SECONDS] [--batch-size N] [--redo] [--list]

Each part is a process of its own, the cheapest first; what is done stays in ``benchmarks/results/full_size.json``, so
that the next call goes on. Beside it a Markdown table is written: time, peak memory, FLOPs and tokens against the
estimate of ``prod9 plan`` for the same batch on a CPU. Networks are untrained and volumes are random heads, neither of
which changes what a step costs.
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

GIB = 1024**3
RESULTS = ROOT / "benchmarks" / "results" / "full_size.json"
MOST_GIB = 24.0
"""What every shipped configuration has to fit in, but those that say otherwise in their name."""
TOLERANCE = 0.15
"""How far the estimate may be from the measured peak."""
A100_FLOPS, UTILISATION = 312e12, 0.4
"""Peak of an A100 in bfloat16, and the share of it that is assumed in training."""
EXACT = "decode 240x240x155, exact"
"""The part that decodes a whole scan at its own size within little memory."""
EXACT_GRID, EXACT_GIB = (240, 240, 160), 3.0
"""155 slices are padded to whole tokens; the bound on its peak."""
Found = dict[str, Any]


def peak_gib() -> float:
    """Return the peak memory of this process."""
    from prod9.system.machine import peak_memory_gib

    return peak_memory_gib()


# -- parts ----------------------------------------------------------------------------------------------


def train_step(name: str, batch_size: int) -> Found:
    """Take one training step of ``name``: both optimizers of stage 1, whose discriminator takes part."""
    import torch
    from _shipped import batch_of, needs_of, of_batch, recipe
    from torch.utils.flop_counter import FlopCounterMode

    from prod9.planning.choose import peak_bytes
    from prod9.training.optimizers import build_optimizer

    changes = of_batch(batch_size)
    made = recipe(name, changes)
    networks = list(made.networks().values())
    training = made.config.training
    if made.convolutional and training.channels_last:
        for network in networks:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for network in networks:
        network.train()
    # The average of the weights that training keeps.
    average = [p.detach().clone() for p in networks[0].parameters()] if training.ema else []
    pairs = zip(networks, made.peak_rates(), strict=True)
    optimizers = [build_optimizer(n, training, rate=r, main=k == 0) for k, (n, r) in enumerate(pairs)]
    batch, step = batch_of(made), training.max_steps - 1
    start = time.perf_counter()
    with FlopCounterMode(display=False) as flops:
        losses = step_of(made, optimizers, batch, step)
    seconds = time.perf_counter() - start
    del average
    needs = needs_of(name, changes)
    return {
        "seconds": seconds,
        "peak_gib": peak_gib(),
        "planned_gib": peak_bytes(needs, "cpu") / GIB,
        "flops": flops.get_total_flops(),
        "tokens": list(needs.latent_grid),
        "parameters": needs.parameters,
        "batch_size": batch_size,
        "steps": training.max_steps,
        "configured_batch": config_batch(name),
        "finite": all(bool(torch.isfinite(value)) for value in losses.values()),
    }


def step_of(made: Any, optimizers: list[Any], batch: Found, step: int) -> Found:
    """Take one step of a recipe as its adapter does, without clipping; return the losses."""
    import torch

    generator = torch.Generator(batch["label"].device).manual_seed(0)
    if len(optimizers) == 1:
        losses = made.losses(batch, step=step, generator=generator)
        losses["total"].backward()
    else:
        x = made.volumes(batch)
        losses, output = made.reconstruct(x, step=step, generator=generator)
        losses["total"].backward()
        made.algorithm.update_discriminator(
            x, output.reconstruction, optimizers[1], step=step, backward=lambda loss: loss.backward()
        )
    optimizers[0].step()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return {key: value.detach() for key, value in losses.items()}


def config_batch(name: str) -> int:
    """Return the batch size of the shipped configuration."""
    from _shipped import config_of

    return config_of(name).data.batch_size


def generate(name: str, batch_size: int) -> Found:
    """Generate one volume: sampled and decoded in stages 2 and 3, reconstructed in stage 1, sharpened or refined."""
    import torch
    from _shipped import batch_of, of_batch, recipe
    from torch.utils.flop_counter import FlopCounterMode

    del batch_size
    made = recipe(name, of_batch(1))
    made.place(torch.device("cpu"))
    for network in made.networks().values():
        network.eval()
    batch = batch_of(made)
    start = time.perf_counter()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        volume = volume_of(made, batch)
    return {
        "seconds": time.perf_counter() - start,
        "peak_gib": peak_gib(),
        "flops": flops.get_total_flops(),
        "voxels": list(volume.shape),
        "finite": bool(torch.as_tensor(volume).isfinite().all()),
    }


def volume_of(made: Any, batch: Found) -> Any:
    """Return the volume that a recipe makes of a batch of one."""
    from prod9.training.recipes.base import Draws, as_array

    stage, draws = made.config.stage, Draws(0, batch["label"].device)
    if stage in ("autoencoder", "maisi_vae"):
        return as_array(made.autoencoder(made.volumes(batch)).reconstruction)
    if stage == "refiner":
        from prod9.training.recipes.refiner import inputs_of

        return as_array(made.algorithm.refine(inputs_of(batch)).volume)
    if stage in ("detail", "maisi_detail", "translation_detail"):
        told, sampler = made._pairs(batch).told, made.config.sampler
        return as_array(made.flow.sample(made.detail, told, sampler.steps, draws.for_sample(0)))
    if stage == "transformer":
        tokens = made.sample_tokens(made.condition(batch), draws)
        return made.autoencoder.decode_tokens(tokens)
    if stage == "maisi_diffusion":
        from prod9.training.recipes.flow import flow_condition

        shape = (1, made.latent_channels, *made.autoencoder.latent_grid)
        sampled = made.sampler.sample(
            made.diffusion.predict, shape, flow_condition(batch), [draws.for_sample(0)]
        )
        return made.autoencoder.decode(sampled / made.scale_factor)
    return made.decode(made._draw(batch, 0, draws)[0])


def decode_exact(name: str, batch_size: int) -> Found:
    """Decode a scan of 240 × 240 × 155 voxels in slabs, with the autoencoder of ``name``."""
    import torch
    from _shipped import recipe

    from prod9.config.sections import SlidingWindowSection
    from prod9.models.factory import ModelFactory

    del batch_size
    network = recipe(name).networks()["autoencoder"].eval()
    window = SlidingWindowSection(strategy="exact")
    wrapper = ModelFactory.create_inference_wrapper(network, window)
    before = peak_gib()
    sides = [side // network.downsampling_factor for side in EXACT_GRID]
    tokens = torch.randint(network.vocab_size, (1, *sides), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    with torch.inference_mode():
        volume = wrapper.decode_tokens(tokens)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_gib": peak_gib(),
        "before_gib": before,
        "voxels": list(volume.shape[2:]),
    }


PARTS = {"train": train_step, "generate": generate, "exact": decode_exact}


# -- running them ---------------------------------------------------------------------------------------


def plan(only: list[str] | None) -> list[tuple[str, str]]:
    """Return (part, configuration), the cheapest by parameters times positions first."""
    from _shipped import names, needs_of, of_batch

    chosen = [name for name in names() if only is None or name in only]
    size = {name: needs_of(name, of_batch(1)).memory_bytes for name in chosen}
    parts = [(part, name) for name in sorted(chosen, key=size.__getitem__) for part in ("train", "generate")]
    exact = "maskgit/brats/stage1/fsq_x8"
    return [*parts, *([("exact", exact)] if exact in chosen else [])]


def spawn(part: str, name: str, batch_size: int, limit: float) -> Found:
    """Run one part in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--part",
        part,
        name,
        "--batch-size",
        str(batch_size),
    ]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:g} s"}
    try:
        return json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"error": (ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"])[-1][:300]}


def load() -> Found:
    """Return the results so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def save(results: Found) -> None:
    """Write the results and their table."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(results), encoding="utf-8")


def hours_on_a100(found: Found) -> float:
    """Return the hours of a whole training on one A100, from the FLOPs of its steps alone."""
    per_sample = found["flops"] / found["batch_size"]
    return per_sample * found["configured_batch"] * found["steps"] / (A100_FLOPS * UTILISATION) / 3600


def table(results: Found) -> str:
    """Return the Markdown page of ``results``."""
    lines = [
        "# Full size on a CPU",
        "",
        "Written by `make full-size`: every shipped BraTS configuration at its real size, batches of one, float32,",
        "a process per row. Planned: what `prod9 plan` estimates for the same batch on a CPU, whole process included.",
        "Hours: FLOPs of the configured batch and steps on an A100 (312 TFLOP/s in bfloat16) at 40%, an estimate.",
        "",
        "| configuration | tokens | TFLOP per step | peak GiB, planned | measured | planned / measured | s per step "
        "| hours on an A100 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    generated = ["| configuration | voxels | TFLOP | peak GiB | s |", "|---|---|---|---|---|"]
    missing = []
    for key, found in sorted(results.items()):
        part, name = key.split(" ", 1)
        if "error" in found:
            missing.append(f"- `{name}`, {part}: {found['error']}.")
        elif part == "train":
            tokens = " × ".join(map(str, found["tokens"])) if any(found["tokens"]) else "volumes"
            ratio = found["planned_gib"] / found["peak_gib"]
            lines.append(
                f"| {name} | {tokens} | {found['flops'] / 1e12:.2f} | {found['planned_gib']:.2f} | "
                f"{found['peak_gib']:.2f} | {ratio:.2f} | {found['seconds']:.1f} | {hours_on_a100(found):.0f} |"
            )
        else:
            flops = f"{found['flops'] / 1e12:.2f}" if "flops" in found else ""
            what = name if part == "generate" else EXACT
            generated.append(
                f"| {what} | {' × '.join(map(str, found['voxels']))} | {flops} | {found['peak_gib']:.2f} | "
                f"{found['seconds']:.1f} |"
            )
    lines += ["", "One volume, generated or reconstructed with the configured sampler:", "", *generated]
    if missing:
        lines += ["", "Not measured:", "", *missing]
    return "\n".join(lines) + "\n"


def verdicts(results: Found) -> list[str]:
    """Return what breaks a bound: memory of a step, the estimate, decoding in slabs."""
    found = []
    for key, result in sorted(results.items()):
        part, name = key.split(" ", 1)
        if "error" in result:
            continue
        if result["peak_gib"] > (EXACT_GIB if part == "exact" else MOST_GIB):
            found.append(f"{key}: {result['peak_gib']:.1f} GiB")
        if part == "train" and abs(result["planned_gib"] / result["peak_gib"] - 1) > TOLERANCE:
            found.append(
                f"{name}: planned {result['planned_gib']:.2f} GiB, measured {result['peak_gib']:.2f}"
            )
    return found


def main() -> int:
    """Run the parts that are not done yet."""
    parser = argparse.ArgumentParser(prog="full_size.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", help="these configurations alone")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for a part")
    parser.add_argument("--minutes", type=float, default=None, help="start no part after this time")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--redo", action="store_true", help="also what is done")
    parser.add_argument("--list", action="store_true", help="print what would run")
    parser.add_argument("--part", nargs=2, metavar=("PART", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    from prod9.system.waiting import limit_spinning

    limit_spinning()
    if args.part:
        part, name = args.part
        print(json.dumps(PARTS[part](name, args.batch_size)), flush=True)
        return 0
    began, results = time.monotonic(), load()
    for part, name in plan(args.only):
        key = f"{part} {name}"
        if key in results and not args.redo and "error" not in results[key]:
            continue
        if args.list or (args.minutes is not None and time.monotonic() - began > 60 * args.minutes):
            print(f"{key}: not run")
            continue
        results[key] = spawn(part, name, args.batch_size, args.limit)
        print(f"{key}: {json.dumps(results[key])}", flush=True)
        save(results)
    broken = verdicts(results)
    print("\n".join(broken) or "all within their bounds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
