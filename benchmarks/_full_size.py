"""One part of `full_size.py`, in a process of its own: a training step, a generated volume, or a decoded scan.

    python benchmarks/_full_size.py train|generate|exact NAME [--batch-size N] [--sampler-steps N] [--limit-gib G]

The last line of stdout is a JSON object. Memory is the peak of the process above what it held after the imports.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]

GIB = 1024**3
EXACT_GRID = (240, 240, 160)
"""155 slices are padded to whole tokens."""
Found = dict[str, Any]


def peak_gib() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def imported() -> float:
    """Import what every part needs, and return the memory of the process then."""
    import _shipped  # noqa: F401
    import torch

    import prod9.training.optimizers  # noqa: F401

    # The first call of each kind loads code of its own.
    layer = torch.nn.Conv3d(8, 8, 3)
    layer(torch.rand(1, 8, 8, 8, 8)).sum().backward()
    return peak_gib()


class Meter:
    """Times a part by the CPU time of its process, and counts its FLOPs; products that no kernel of torch does, such as
    Winograd's, count as torch's own would.
    """

    def __enter__(self) -> "Meter":
        from torch.utils.flop_counter import FlopCounterMode

        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.counter.__exit__(*error)

    def found(self, before: float) -> Found:
        """Return what was measured; before: memory after the imports."""
        return {
            "cpu_seconds": self.cpu,
            "wall_seconds": self.wall,
            "flops": self.counter.get_total_flops(),
            "import_gib": before,
            "peak_gib": peak_gib() - before,
        }


# -- parts ----------------------------------------------------------------------------------------------


def train_step(name: str, args: argparse.Namespace) -> Found:
    """Take one training step of ``name`` with moments and average in place, the discriminator of stage 1 included."""
    before = imported()
    import torch
    from _shipped import batch_of, config_of, needs_of, of_batch, recipe

    from prod9.planning.choose import peak_bytes
    from prod9.planning.estimates import OVERHEAD
    from prod9.training.optimizers import build_optimizer

    changes = of_batch(args.batch_size)
    made = recipe(name, changes)
    made.place(torch.device("cpu"))
    networks, training = list(made.networks().values()), made.config.training
    for network in networks:
        network.train()
        if made.convolutional and training.channels_last:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = [p.detach().clone() for p in networks[0].parameters()] if training.ema else []
    pairs = zip(networks, made.peak_rates(), strict=True)
    optimizers = [build_optimizer(n, training, rate=r, main=k == 0) for k, (n, r) in enumerate(pairs)]
    with_moments(networks, optimizers)
    batch = batch_of(made)
    with Meter() as meter:
        losses = step_of(made, optimizers, batch, training.max_steps - 1)
    del average
    needs, shipped = needs_of(name, changes), config_of(name)
    return meter.found(before) | {
        "planned_gib": needs.memory_bytes / OVERHEAD / GIB,
        "planned_process_gib": peak_bytes(needs, "cpu") / GIB,
        "planned_cuda_gib": needs_of(name, device="cuda").memory_gib,
        "tokens": list(needs.latent_grid) if needs.positions or any(needs.latent_grid) else [],
        "positions": needs.positions,
        "parameters": needs.parameters,
        "batch_size": args.batch_size,
        "voxels": next((list(batch[key].shape[2:]) for key in ("image", "target") if key in batch), []),
        "steps": training.max_steps,
        "samples_per_step": samples_per_step(shipped),
        "finite": all(bool(torch.isfinite(value)) for value in losses.values()),
    }


def with_moments(networks: list[Any], optimizers: list[Any]) -> None:
    """Let the optimizers make their moments, which a run has from its second step on."""
    import torch

    for network, optimizer in zip(networks, optimizers, strict=True):
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def samples_per_step(config: Any) -> float:
    """Return what a step at the configured batch takes, in units of what one step here takes.

    Where a run changes from crops to whole volumes, the step here sees a whole volume.
    """
    from math import prod

    from _shipped import whole_fraction

    data, whole = config.data, whole_fraction(config)
    if data.crop_size is None or whole == 0:
        return data.batch_size
    return whole + (1 - whole) * data.batch_size * prod(data.crop_size) / prod(data.grid)


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


def generate(name: str, args: argparse.Namespace) -> Found:
    """Generate one volume: sampled and decoded in stages 2 and 3, reconstructed in stage 1, sharpened or refined."""
    before = imported()
    import torch
    from _shipped import batch_of, config_of, recipe

    wanted = getattr(getattr(config_of(name), "sampler", None), "steps", None)
    steps = wanted if wanted is None or args.sampler_steps is None else min(wanted, args.sampler_steps)

    def changes(one: str) -> list[str]:
        own = [f"sampler.steps={steps}"] if one == name and steps is not None else []
        return ["data.batch_size=1", *own]

    made = recipe(name, changes)
    made.place(torch.device("cpu"))
    for network in made.networks().values():
        network.eval()
    batch = batch_of(made)
    with torch.inference_mode(), Meter() as meter:
        volume = volume_of(made, batch)
    return meter.found(before) | {
        "voxels": list(volume.shape),
        "sampler_steps": steps,
        "configured_steps": wanted,
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
        return as_array(made.autoencoder.decode_tokens(made.sample_tokens(made.condition(batch), draws)))
    if stage == "maisi_diffusion":
        from prod9.training.recipes.flow import flow_condition

        shape = (1, made.latent_channels, *made.autoencoder.latent_grid)
        generators = [draws.for_sample(0)]
        sampled = made.sampler.sample(made.diffusion.predict, shape, flow_condition(batch), generators)
        return as_array(made.autoencoder.decode(sampled / made.scale_factor))
    return made.decode(made._draw(batch, 0, draws)[0])


def decode_exact(name: str, args: argparse.Namespace) -> Found:
    """Decode a scan of 240 × 240 × 155 voxels in slabs, with the autoencoder of ``name``."""
    before = imported()
    import torch
    from _shipped import recipe

    from prod9.config.sections import SlidingWindowSection
    from prod9.models.factory import ModelFactory

    del args
    made = recipe(name)
    network = made.autoencoder.eval()  # type: ignore[attr-defined]
    del made
    wrapper = ModelFactory.create_inference_wrapper(network, SlidingWindowSection(strategy="exact"))
    sides = [side // network.downsampling_factor for side in EXACT_GRID]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), Meter() as meter:
        if hasattr(network, "vocab_size"):
            volume = wrapper.decode_tokens(
                torch.randint(network.vocab_size, (1, *sides), generator=generator)
            )
        else:
            volume = wrapper.decode(torch.randn(1, network.latent_channels, *sides, generator=generator))
    return meter.found(before) | {"voxels": list(volume.shape[2:]), "finite": bool(volume.isfinite().all())}


PARTS = {"train": train_step, "generate": generate, "exact": decode_exact}


def main() -> int:
    """Measure one part."""
    parser = argparse.ArgumentParser(
        prog="_full_size.py", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("name")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sampler-steps", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-gib", type=float, default=None, help="fail rather than take more")
    args = parser.parse_args()
    if args.limit_gib is not None:
        most = int(args.limit_gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    from prod9.system.waiting import limit_spinning

    limit_spinning()
    import torch

    torch.set_num_threads(args.threads)
    print(json.dumps(PARTS[args.part](args.name, args)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
