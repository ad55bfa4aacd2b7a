"""One part of `full_size.py`, in a process of its own: a training step, counted or taken, a volume, or a decoded scan.

    python benchmarks/_full_size.py count|train|generate|exact|exact_bf16 NAME … [--batch-size N] [--limit-gib G]

Prints a JSON object for each configuration. Memory is the peak of the process above what it held after the imports.
"""

import argparse
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable
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

    # The first call of each kind loads code of its own, and so does the meter.
    layer = torch.nn.Conv3d(8, 8, 3)
    with Meter():
        layer(torch.rand(1, 8, 8, 8, 8)).sum().backward()
        torch.optim.AdamW(layer.parameters()).step()
    return peak_gib()


class Meter:
    """Times a part by the CPU time of its process, and counts its FLOPs unless told not to.

    Counting keeps tensors alive for longer, so a training step's memory is measured without; its FLOPs are those of
    ``count``. Products that no kernel of torch does, such as Winograd's, count as torch's own would.
    """

    def __init__(self, *, counts: bool = True) -> None:
        self.counts = counts

    def __enter__(self) -> "Meter":
        from torch.utils.flop_counter import FlopCounterMode

        self.counter = FlopCounterMode(display=False)
        if self.counts:
            self.counter.__enter__()
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        if self.counts:
            self.counter.__exit__(*error)

    def found(self, before: float) -> Found:
        """Return what was measured; before: memory after the imports."""
        return {
            "cpu_seconds": self.cpu,
            "wall_seconds": self.wall,
            **({"flops": self.counter.get_total_flops()} if self.counts else {}),
            "import_gib": before,
            "peak_gib": peak_gib() - before,
        }


# -- parts ----------------------------------------------------------------------------------------------


def count(name: str, args: argparse.Namespace) -> Found:
    """Count a training step, and a sample, of ``name`` on tensors without memory."""
    import torch
    from _counted import channels_last, counted
    from _shipped import batch_of, of_batch, recipe

    changes = of_batch(args.batch_size)
    with counted() as counter:
        made = recipe(name, changes)
        optimizers, average, batch = ready(made, channels_last), weights_of(made), batch_of(made)
        before = counter.restart()
        step_of(made, optimizers, batch, made.config.training.max_steps - 1)
        flops, gib = counter.flops, counter.gib
        del average, optimizers
    return {
        "flops": flops,
        "counted_gib": gib,
        "before_gib": before,
        "batch_size": args.batch_size,
        "voxels": next((list(batch[key].shape[2:]) for key in ("image", "target") if key in batch), []),
        "torch": torch.__version__,
    }


def planned(name: str, batch_size: int) -> Found:
    """Return what the plan says of a training step of ``name``."""
    from _shipped import config_of, needs_of, of_batch, whole_fraction

    from prod9.planning.choose import peak_bytes
    from prod9.planning.estimates import OVERHEAD

    needs, shipped = needs_of(name, of_batch(batch_size)), config_of(name)
    return {
        "gib": needs.memory_bytes / OVERHEAD / GIB,
        "process_gib": peak_bytes(needs, "cpu") / GIB,
        "cuda_gib": needs_of(name, device="cuda").memory_gib,
        "tokens": list(needs.latent_grid) if any(needs.latent_grid) else [],
        "parameters": needs.parameters,
        "steps": shipped.training.max_steps,
        "samples_per_step": samples_per_step(shipped),
        "batch_size": batch_size,
        "voxels": list(shipped.data.grid if whole_fraction(shipped) > 0 else shipped.data.crop_size),
        "flops": planned_flops(name, batch_size, needs),
    }


def planned_flops(name: str, batch_size: int, needs: Any) -> float | None:
    """Return the operations of a training step by the formulas of the plan; None where it has none."""
    from _shipped import chain, config_of, needs_of, of_batch

    from prod9.planning.autoencoder import autoencoder_work
    from prod9.planning.control import control_work
    from prod9.planning.flow import flow_work
    from prod9.planning.transformer import transformer_work

    config: Any = config_of(name, of_batch(batch_size))
    if config.stage in ("autoencoder", "maisi_vae"):
        if config.data.crop_size is not None and config.data.whole_volume_fraction > 0:
            data = config.data.model_copy(update={"crop_size": None, "batch_size": 1})
            config = config.model_copy(update={"data": data})
        return 2 * autoencoder_work(config)
    if config.stage == "transformer":
        return 2 * transformer_work(config, needs)
    if config.stage == "maisi_diffusion":
        return 2 * flow_work(config, needs.positions, 4)
    if config.stage in ("maskgit_controlnet", "maisi_controlnet"):
        base = chain(name)[1]
        below = planned_flops(base, batch_size, needs_of(base, of_batch(batch_size)))
        return None if below is None else control_work(config, config_of(base), below)  # type: ignore[arg-type]
    return None


def train_step(name: str, args: argparse.Namespace) -> Found:
    """Take one training step of ``name``, the discriminator of stage 1 included."""
    before = imported()
    import torch
    from _harness import product_rate
    from _shipped import batch_of, of_batch, recipe

    made = recipe(name, of_batch(args.batch_size))
    made.place(torch.device("cpu"))
    optimizers, average, batch = ready(made, _channels_last), weights_of(made), batch_of(made)
    with Meter(counts=False) as meter:
        losses = step_of(made, optimizers, batch, made.config.training.max_steps - 1)
    del average
    finite = all(bool(torch.isfinite(value)) for value in losses.values())
    found = meter.found(before) | {"batch_size": args.batch_size, "finite": finite}
    # After the peak was read: how fast this machine multiplies matrices of the size of a transformer's.
    return found | {"products_per_second": product_rate(1024, 512, 2048, "cpu")}


def ready(made: Any, laid_out: Callable[[Any], object]) -> list[Any]:
    """Bring the networks of a recipe to where its second step finds them, and return their optimizers."""
    from prod9.training.optimizers import build_optimizer

    networks, training = list(made.networks().values()), made.config.training
    for network in networks:
        network.train()
        if made.convolutional and training.channels_last:
            laid_out(network)
    pairs = enumerate(zip(networks, made.peak_rates(), strict=True))
    optimizers = [build_optimizer(n, training, rate=r, main=k == 0) for k, (n, r) in pairs]
    with_moments(networks, optimizers)
    return optimizers


def weights_of(made: Any) -> list[Any]:
    """Return the average of the weights that training keeps, where it keeps one."""
    main = next(iter(made.networks().values()))
    return [p.detach().clone() for p in main.parameters()] if made.config.training.ema else []


def _channels_last(network: Any) -> None:
    import torch

    network.to(memory_format=torch.channels_last_3d)


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
        return as_array(made.autoencoder.reconstruct(made.volumes(batch)))
    if stage == "refiner":
        from prod9.training.recipes.refiner import inputs_of

        return as_array(made.algorithm.refine(inputs_of(batch)).volume)
    if stage in ("detail", "maisi_detail", "translation_detail"):
        told, sampler = made._pairs(batch).told, made.config.sampler
        return as_array(made.flow.sample(made.detail, told, sampler.steps, draws.for_sample(0)))
    if stage == "transformer":
        return made.autoencoder.decode_tokens(made.sample_tokens(made.condition(batch), draws))
    if stage == "maisi_diffusion":
        from prod9.training.recipes.flow import flow_condition

        shape = (1, made.latent_channels, *made.autoencoder.latent_grid)
        generators = [draws.for_sample(0)]
        sampled = made.sampler.sample(made.diffusion.predict, shape, flow_condition(batch), generators)
        return made.autoencoder.decode(sampled / made.scale_factor)
    return made.decode(made._draw(batch, 0, draws)[0])


def decode_exact(name: str, args: argparse.Namespace) -> Found:
    """Decode a scan of 240 × 240 × 155 voxels in slabs, with the autoencoder of ``name``."""
    before = imported()
    import torch
    from _shipped import recipe

    from prod9.config.sections import SlidingWindowSection
    from prod9.models.factory import ModelFactory

    made = recipe(name)
    network = made.autoencoder.eval()  # type: ignore[attr-defined]
    del made
    keep = "bfloat16" if args.part == "exact_bf16" else "float32"
    section = SlidingWindowSection(strategy="exact", keep_dtype=keep)
    wrapper = ModelFactory.create_inference_wrapper(network, section)
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


PARTS = {"count": count, "train": train_step, "generate": generate}
PARTS |= {"exact": decode_exact, "exact_bf16": decode_exact}


def main() -> int:
    """Measure one part."""
    parser = argparse.ArgumentParser(
        prog="_full_size.py", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("name", nargs="+")
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
    for name in args.name:
        try:
            found = PARTS[args.part](name, args)
        except Exception as error:
            traceback.print_exc()
            found = {
                "error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            }
        print(json.dumps({name: found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
