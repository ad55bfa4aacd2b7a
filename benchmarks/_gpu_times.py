"""Parts of the GPU suite that measure: the shipped configurations against the plan, and MONAI's modules beside ours."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _harness
import torch
from _full_size import step_of, volume_of
from _shipped import batch_of, names, needs_of, recipe, shrunk, unchanged
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

GIB = 1024**3
ROUNDS = 5
Found = dict[str, Any]
Arm = Callable[[], object]


@dataclass
class Clock:
    """What one part has: its device, its size, its time; every figure is printed at once, so that a cut run keeps it.

    Attributes:
        device: ``cpu`` or ``cuda``.
        tiny: at the sizes of tests.
        seconds: after which no further arm or round begins.
    """

    device: str
    tiny: bool
    seconds: float = float("inf")
    began: float = field(default_factory=time.monotonic)
    found: Found = field(default_factory=lambda: {"ok": True})

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.began > self.seconds

    def emit(self, **more: Any) -> None:
        """Add to what was found, and print it."""
        for key, value in more.items():
            old = self.found.get(key)
            self.found[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        print(json.dumps(self.found), flush=True)


def wait(device: str) -> None:
    """Wait until ``device`` has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(clock: Clock, arms: Mapping[str, Arm], rounds: int = ROUNDS) -> None:
    """Time ``arms`` in turn after two rounds that do not count, and emit the median of each and MONAI's over ours.

    Once the time is up, no round begins after the first, and no arm that nothing has been measured of.
    """
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(-2 if clock.device == "cuda" else -1, 1 if clock.tiny else rounds):
        for name, run in arms.items():
            if clock.late:
                continue
            wait(clock.device)
            start = time.perf_counter()
            run()
            wait(clock.device)
            if index >= 0:
                samples[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in samples.items() if values}
    pairs = [name.removesuffix(" ours") for name in seconds if name.endswith(" ours")]
    ratios = {
        stem: seconds[f"{stem} monai"] / seconds[f"{stem} ours"]
        for stem in pairs
        if f"{stem} monai" in seconds
    }
    counted = {name: len(values) for name, values in samples.items()}
    clock.emit(seconds=seconds, rounds=counted, **({"ratios": ratios} if ratios else {}))


@contextmanager
def precision(device: str, kind: str) -> Iterator[None]:
    """Run in ``fp32``, with TF32 as torch has it by default, or in ``bf16`` by autocast."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=kind == "bf16"):
        yield


# -- shipped configurations -----------------------------------------------------------------------------


def shipped(name: str, clock: Clock) -> None:
    """Train and generate with one configuration at its own batch; its memory against the plan."""
    from prod9.planning.choose import peak_bytes
    from prod9.training.optimizers import build_optimizer

    device, changes = clock.device, shrunk if clock.tiny else unchanged
    made = recipe(name, changes)
    made.place(torch.device(device))
    networks = list(made.networks().values())
    for network in networks:
        network.to(device).train()
        if made.convolutional and made.config.training.channels_last:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = [p.detach().clone() for p in networks[0].parameters()]
    pairs = enumerate(zip(networks, made.peak_rates(), strict=True))
    optimizers = [build_optimizer(n, made.config.training, rate=r, main=k == 0) for k, (n, r) in pairs]
    batch, last = batch_of(made, device), made.config.training.max_steps - 1
    clock.emit(batch=made.config.data.batch_size)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step(kind: str) -> None:
        with precision(device, kind):
            step_of(made, optimizers, batch, last)

    measure(clock, {"step bf16": lambda: step("bf16")})
    if device == "cuda":
        planned, peak = peak_bytes(needs_of(name, changes, "cuda"), "cuda"), torch.cuda.max_memory_allocated()
        clock.emit(peak_gib=peak / GIB, planned_gib=planned / GIB, ok=peak <= planned)
    measure(clock, {"step fp32": lambda: step("fp32")}, 2)
    del average, optimizers
    for network in networks:
        network.eval()
    one = {key: value[:1] for key, value in batch.items()}

    def volume() -> None:
        with torch.no_grad(), precision(device, "bf16"):
            volume_of(made, one)

    measure(clock, {"volume bf16": volume}, 1)


# -- beside MONAI ---------------------------------------------------------------------------------------


def autoencoders(clock: Clock, *, compiled: bool) -> None:
    """Encode, decode and train with MONAI's autoencoder and ours, of equal weights: the network of stage1/fsq_x8."""
    import bench_autoencoder as bench

    from prod9.autoencoder.native.voxel_folding import fold_voxels

    setting: dict[str, Any] = bench.DEMO
    if not clock.tiny:
        setting = setting | {
            "num_channels": (64, 128, 256),
            "num_res_blocks": (2, 2, 2),
            "norm_num_groups": 32,
        }
    ours, peer = (network.to(clock.device) for network in bench.build(setting))
    side = 16 if clock.tiny else 96
    x = torch.rand(1, 1, side, side, side, device=clock.device)
    folded = fold_voxels(x, setting["space_to_depth"])
    with torch.no_grad():
        codes = ours.quantize(ours.encode(x))
        agreed = _harness.max_rel_diff(peer.decode(codes), fold_voxels(ours.decode(codes), 2))
    clock.emit(max_rel_diff=agreed, network=setting)
    calls: dict[str, tuple[Any, Any]] = {"ours": (ours, x), "monai": (peer, folded)}
    # What is called is not `forward`, which `compile` would replace.
    chosen = torch.compile if compiled else _as_it_is

    def train(reconstruct: Callable[[Tensor], Tensor], network: nn.Module, given: Tensor, kind: str) -> None:
        with precision(clock.device, kind):
            loss = (reconstruct(given).float() - given).abs().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    for kind in ("bf16", "fp32"):
        arms: dict[str, dict[str, Arm]] = {"decode": {}, "encode": {}, "train": {}}
        for who, (network, given) in calls.items():
            encode, decode, reconstruct = (
                chosen(call) for call in (network.encode, network.decode, network.reconstruct)
            )
            arms["train"][f"train {kind} {who}"] = _bound(train, reconstruct, network, given, kind)
            arms["encode"][f"encode {kind} {who}"] = _bound(_free, clock, encode, given, kind)
            arms["decode"][f"decode {kind} {who}"] = _bound(_free, clock, decode, codes, kind)
        for pair in arms.values():
            measure(clock, pair)


def unets(clock: Clock, *, compiled: bool) -> None:
    """Predict, train and sample with MONAI's U-Net and ours, of equal weights: the network of diffusion/brats."""
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    from prod9.diffusion.condition import FlowCondition
    from prod9.diffusion.diffusion_model import DiffusionModelRF

    device, tiny = clock.device, clock.tiny
    widths = (16, 32) if tiny else (64, 128, 256, 512)
    attention = (False, True) if tiny else (False, False, True, True)
    shared: dict[str, Any] = {
        "num_channels": widths, "attention_levels": attention, "num_res_blocks": 2, "norm_num_groups": 16,
        "num_head_channels": tuple((16 if tiny else 32) * on for on in attention),
        "resblock_updown": True, "include_fc": True, "num_class_embeds": 128,
    }  # fmt: skip
    torch.manual_seed(0)
    ours = DiffusionModelRF(latent_channels=4, **shared)
    for parameter in ours.parameters():
        if not parameter.any():  # fresh, its last layer would give 0
            nn.init.normal_(parameter, std=0.05)
    ours.to(device).eval()
    theirs = DiffusionModelUNetMaisi(
        spatial_dims=3, in_channels=4, out_channels=4, include_spacing_input=True,
        use_flash_attention=device == "cuda", **shared,
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    theirs.to(device).eval()
    x = torch.randn(1, 4, *((8, 8, 8) if tiny else (40, 48, 40)), device=device)
    times = torch.full((1,), 500.0, device=device)
    condition = FlowCondition.of_heads(
        torch.ones(1, dtype=torch.int64, device=device), torch.ones(1, 3, device=device)
    )

    def ask_ours(latent: Tensor, at: Tensor) -> Tensor:
        return ours.predict(latent, at, condition)

    def ask_theirs(latent: Tensor, at: Tensor) -> Tensor:
        return theirs(latent, at, class_labels=condition.label, spacing_tensor=100 * condition.spacing)

    with torch.no_grad(), precision(device, "fp32"):
        clock.emit(max_rel_diff=_harness.max_rel_diff(ask_theirs(x, times), ask_ours(x, times)))
    chosen = torch.compile if compiled else _as_it_is
    calls = {"ours": (ours, chosen(ask_ours)), "monai": (theirs, chosen(ask_theirs))}

    def train(network: nn.Module, ask: Callable[[Tensor, Tensor], Tensor], kind: str) -> None:
        with precision(device, kind):
            loss = (ask(x, times).float() - x).abs().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    for kind in ("bf16", "fp32"):
        arms: dict[str, dict[str, Arm]] = {"predict": {}, "train": {}, "sample of 4 steps": {}}
        for who, (network, ask) in calls.items():
            arms["predict"][f"predict {kind} {who}"] = _bound(_free, clock, _bound_time(ask, times), x, kind)
            arms["train"][f"train {kind} {who}"] = _bound(train, network, ask, kind)
            sample = _our_sample if who == "ours" else _monai_sample
            arms["sample of 4 steps"][f"sample of 4 steps {kind} {who}"] = _bound(
                _free, clock, _bound(sample, ask, tuple(x.shape)), x, kind
            )
        for pair in arms.values():
            measure(clock, pair)


def _our_sample(ask: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    from prod9.diffusion.condition import FlowCondition
    from prod9.diffusion.sampler import RectifiedFlowSampler
    from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF

    sampler = RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=4)
    condition = FlowCondition(torch.ones(1, dtype=torch.int64, device=like.device))
    generator = torch.Generator(like.device).manual_seed(0)
    return sampler.sample(lambda x, t, c: ask(x, t), shape, condition, generator)


def _monai_sample(ask: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    from monai.networks.schedulers.rectified_flow import RFlowScheduler

    scheduler = RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=True, spatial_dim=3)
    scheduler.set_timesteps(4, device=like.device, input_img_size_numel=like[0, 0].numel())
    x = torch.randn_like(like)
    following = [*scheduler.timesteps[1:], torch.zeros_like(scheduler.timesteps[0])]
    for t, t_next in zip(scheduler.timesteps, following, strict=True):
        x, _ = scheduler.step(ask(x, t.expand(1).float()), t, x, t_next)
    return x


def _as_it_is(call: Any) -> Any:
    return call


def _bound(call: Callable[..., Any], *given: Any) -> Callable[..., Any]:
    """Return ``call`` with its first arguments, which a lambda in a loop would take from the last turn."""
    return lambda *more: call(*given, *more)


def _bound_time(ask: Callable[[Tensor, Tensor], Tensor], times: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: ask(x, times)


def _free(clock: Clock, call: Callable[[Tensor], Any], given: Tensor, kind: str) -> None:
    """Call without gradients."""
    with torch.no_grad(), precision(clock.device, kind):
        call(given)


def parts() -> dict[str, Callable[[Clock], None]]:
    """Return the parts by name."""
    found: dict[str, Callable[[Clock], None]] = {}
    for compiled in (False, True):
        suffix = "_compiled" if compiled else ""
        for part in (autoencoders, unets):
            found[f"monai_{part.__name__}{suffix}"] = lambda clock, p=part, c=compiled: p(clock, compiled=c)
    for name in names():
        key = f"shipped_{name.replace('/', '_')}"
        found[key] = lambda clock, name=name: shipped(name, clock)
    return found
