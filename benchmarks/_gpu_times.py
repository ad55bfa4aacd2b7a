"""Parts of the GPU suite that measure: the shipped configurations against the plan, and MONAI's modules beside ours."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _harness
import torch
from _shipped import batch_of, names, needs_of, recipe, shrunk, unchanged
from full_size import step_of, volume_of
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

GIB = 1024**3
ROUNDS = 5
Found = dict[str, Any]
Arm = Callable[[], object]


def wait(device: str) -> None:
    """Wait until ``device`` has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(arms: Mapping[str, Arm], device: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of each arm, run in turn after two rounds that do not count."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(-2 if device == "cuda" else -1, rounds):
        for name, run in arms.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if index >= 0:
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


@contextmanager
def precision(device: str, kind: str) -> Iterator[None]:
    """Run in ``fp32``, with TF32 as torch has it by default, or in ``bf16`` by autocast."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=kind == "bf16"):
        yield


# -- shipped configurations -----------------------------------------------------------------------------


def shipped(name: str, device: str, *, tiny: bool) -> Found:
    """Train and generate with one configuration at its own batch and precision; memory against the plan."""
    from prod9.planning.choose import peak_bytes
    from prod9.training.optimizers import build_optimizer

    changes = shrunk if tiny else unchanged
    made = recipe(name, changes)
    made.place(torch.device(device))
    networks = list(made.networks().values())
    for network in networks:
        network.to(device).train()
        if made.convolutional and made.config.training.channels_last:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = [p.detach().clone() for p in networks[0].parameters()]
    pairs = zip(networks, made.peak_rates(), strict=True)
    optimizers = [
        build_optimizer(n, made.config.training, rate=r, main=k == 0) for k, (n, r) in enumerate(pairs)
    ]
    batch, last = batch_of(made, device), made.config.training.max_steps - 1
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step(kind: str) -> None:
        with precision(device, kind):
            step_of(made, optimizers, batch, last)

    rounds = 1 if tiny else ROUNDS
    found: Found = {"batch": made.config.data.batch_size, "ok": True}
    found["seconds"] = median_seconds({"step bf16": lambda: step("bf16")}, device, rounds)
    if device == "cuda":
        needs = needs_of(name, changes, "cuda")
        peak = torch.cuda.max_memory_allocated()
        found |= {"peak_gib": peak / GIB, "planned_gib": peak_bytes(needs, "cuda") / GIB}
        found["ok"] = peak <= peak_bytes(needs, "cuda")
    del average, optimizers
    for network in networks:
        network.eval()
    one = {key: value[:1] for key, value in batch.items()}

    def volume() -> None:
        with torch.no_grad(), precision(device, "bf16"):
            volume_of(made, one)

    found["seconds"] |= median_seconds({"volume bf16": volume}, device, 1)
    return found


# -- beside MONAI ---------------------------------------------------------------------------------------


def autoencoders(device: str, *, tiny: bool, compiled: bool) -> Found:
    """Encode, decode and train with MONAI's autoencoder and ours, of equal weights."""
    import bench_autoencoder as bench

    from prod9.autoencoder.native.voxel_folding import fold_voxels

    ours, peer = (network.to(device) for network in bench.build(bench.SMALL))
    side = 16 if tiny else 96
    x = torch.rand(1, 1, side, side, side, device=device)
    folded = fold_voxels(x, bench.SMALL["space_to_depth"])
    with torch.no_grad():
        codes = ours.quantize(ours.encode(x))
    calls: dict[str, tuple[Any, Any]] = {"ours": (ours, x), "monai": (peer, folded)}
    if compiled:
        for network, _ in calls.values():
            network.compile()

    def train(network: nn.Module, given: Tensor, kind: str) -> None:
        with precision(device, kind):
            loss = (network.reconstruct(given).float() - given).abs().mean()  # type: ignore[operator]
        loss.backward()
        network.zero_grad(set_to_none=True)

    def without_gradient(call: Callable[[], object], kind: str) -> None:
        with torch.no_grad(), precision(device, kind):
            call()

    arms: dict[str, Arm] = {}
    for who, (network, given) in calls.items():
        for kind in ("fp32", "bf16"):
            arms |= {
                f"train {kind} {who}": lambda n=network, g=given, k=kind: train(n, g, k),
                f"encode {kind} {who}": lambda n=network, g=given, k=kind: without_gradient(
                    lambda: n.encode(g), k
                ),
                f"decode {kind} {who}": lambda n=network, k=kind: without_gradient(
                    lambda: n.decode(codes), k
                ),
            }
    return _ratios(median_seconds(arms, device, 1 if tiny else ROUNDS))


def unets(device: str, *, tiny: bool, compiled: bool) -> Found:
    """Predict a velocity with MONAI's U-Net and ours, of equal weights."""
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    from prod9.diffusion.condition import FlowCondition
    from prod9.diffusion.diffusion_model import DiffusionModelRF, monai_keywords

    widths = (16, 32) if tiny else (64, 128, 256, 512)
    attention = (False, True) if tiny else (False, False, True, True)
    heads = tuple(16 * on if tiny else 32 * on for on in attention)
    shared: dict[str, Any] = {
        "num_channels": widths, "attention_levels": attention, "num_head_channels": heads, "num_res_blocks": 2,
        "resblock_updown": True, "include_fc": True, "num_class_embeds": 128, "norm_num_groups": 16,
    }  # fmt: skip
    ours = DiffusionModelRF(latent_channels=4, **shared).to(device).eval()
    theirs = DiffusionModelUNetMaisi(
        **monai_keywords({"latent_channels": 4, **shared}), out_channels=4, include_spacing_input=True
    )
    theirs.load_state_dict(ours.state_dict())
    theirs.to(device).eval()
    grid = (8, 8, 8) if tiny else (40, 48, 40)
    x, times = torch.randn(1, 4, *grid, device=device), torch.full((1,), 500.0, device=device)
    condition = FlowCondition.of_heads(
        torch.ones(1, dtype=torch.int64, device=device), torch.ones(1, 3, device=device)
    )
    calls: dict[str, Arm] = {
        "ours": lambda: ours.predict(x, times, condition),
        "monai": lambda: theirs(x, times, class_labels=condition.label, spacing_tensor=condition.spacing),
    }
    with torch.no_grad(), precision(device, "fp32"):
        one, two = (call() for call in calls.values())
    if compiled:
        ours.compile()
        theirs.compile()

    def run(call: Arm, kind: str) -> None:
        with torch.no_grad(), precision(device, kind):
            call()

    arms: dict[str, Arm] = {
        f"predict {kind} {who}": lambda c=call, k=kind: run(c, k)
        for who, call in calls.items()
        for kind in ("fp32", "bf16")
    }
    found = _ratios(median_seconds(arms, device, 1 if tiny else ROUNDS))
    found["max_rel_diff"] = _harness.max_rel_diff(one, two)  # type: ignore[arg-type]
    return found


def _ratios(seconds: dict[str, float]) -> Found:
    """Return ``seconds`` and MONAI's time over ours of each arm."""
    stems = [name.removesuffix(" ours") for name in seconds if name.endswith(" ours")]
    ratios = {stem: seconds[f"{stem} monai"] / seconds[f"{stem} ours"] for stem in stems}
    return {"seconds": seconds, "ratios": ratios, "ok": True}


def parts() -> dict[str, Callable[..., Found]]:
    """Return the parts by name; each takes the device and ``tiny``."""
    found: dict[str, Callable[..., Found]] = {}
    for compiled in (False, True):
        suffix = "_compiled" if compiled else ""
        for part in (autoencoders, unets):
            found[f"monai_{part.__name__}{suffix}"] = lambda d, tiny, p=part, c=compiled: p(
                d, tiny=tiny, compiled=c
            )
    for name in names():
        key = f"shipped_{name.replace('/', '_')}"
        found[key] = lambda d, tiny, name=name: shipped(name, d, tiny=tiny)
    return found
