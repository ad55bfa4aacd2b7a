"""Rectified flow against MONAI's RFlowScheduler: the end of a straight line, and the overhead of the loop.

With the exact, constant velocity every number of steps should end at the data. MONAI runs in the continuous mode of
NVIDIA's inference (times in float16, next times truncated to integers); its discrete mode is exact and also reported.
``loop_overhead`` is the share of a sampling step outside of the network.

``control_step``: time of MONAI's ControlNetMaisi per sampling step over that of ours with the same weights and
operators. MONAI encodes the segmentation at every step, ours once per sample. ``control_step_native``: with our
operators. Both are the published network at image 128³ (``--quick``: 96³).
"""

from collections.abc import Callable

import _harness
import torch
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.networks.blocks.selfattention import SABlock
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor

from prod9.controlnet.condition import ControlCondition, bit_planes
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler, draw_noise
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF

SHAPE = (1, 4, 16, 16, 16)
STEPS = (1, 10, 30, 100, 1000)
NETWORK = {
    "latent_channels": 4,
    "num_channels": (32, 64),
    "attention_levels": (False, True),
    "num_head_channels": (0, 32),
    "num_res_blocks": 1,
    "norm_num_groups": 16,
}


def ours(steps: int, velocity: Callable[[Tensor], Tensor]) -> Tensor:
    """Integrate with our sampler from the noise of seed 0."""
    sampler = RectifiedFlowSampler(
        scheduler=RectifiedFlowSchedulerRF(use_timestep_transform=True), steps=steps
    )
    condition = FlowCondition(torch.zeros(1, dtype=torch.int64))
    return sampler.sample(lambda x, t, c: velocity(x), SHAPE, condition, torch.Generator().manual_seed(0))


def theirs(steps: int, velocity: Callable[[Tensor], Tensor], *, discrete: bool) -> Tensor:
    """Integrate as NVIDIA's inference does, from the same noise."""
    scheduler = RFlowScheduler(
        num_train_timesteps=1000,
        use_discrete_timesteps=discrete,
        use_timestep_transform=not discrete,
        spatial_dim=3,
    )
    scheduler.set_timesteps(steps, input_img_size_numel=SHAPE[2] * SHAPE[3] * SHAPE[4])
    x = draw_noise(SHAPE, torch.Generator().manual_seed(0))
    following = torch.cat([scheduler.timesteps[1:], torch.zeros(1, dtype=scheduler.timesteps.dtype)])
    for t, t_next in zip(scheduler.timesteps, following, strict=True):
        x, _ = scheduler.step(velocity(x), t, x, t_next)
    return x


def endpoint_errors(bench: _harness.Bench) -> None:
    x_0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    noise = draw_noise(SHAPE, torch.Generator().manual_seed(0))

    def straight(x: Tensor) -> Tensor:
        return x_0 - noise

    def error(x: Tensor) -> float:
        return float((x - x_0).norm() / (x_0 - noise).norm())

    for steps in STEPS:
        suffix = "" if steps == 30 else f"_{steps}_steps"
        bench.value(f"endpoint_error_ours{suffix}", error(ours(steps, straight)))
        bench.value(f"endpoint_error_monai{suffix}", error(theirs(steps, straight, discrete=False)))
        discrete = error(theirs(steps, straight, discrete=True))
        bench.value(f"endpoint_error_monai_discrete{suffix}", discrete)


def loop_overhead(bench: _harness.Bench, rounds: int) -> None:
    torch.manual_seed(0)
    network = DiffusionModelRF(**NETWORK).eval()
    now, inside = _harness.CLOCKS[bench.clock], [0.0]

    def timed(x: Tensor, t: Tensor, condition: FlowCondition) -> Tensor:
        began = now()
        velocity = network.predict(x, t, condition)
        inside[0] += now() - began
        return velocity

    sampler = RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=10)
    condition = FlowCondition.of_heads(torch.zeros(1, dtype=torch.int64), torch.ones(1, 3))
    sampler.sample(timed, SHAPE, condition, torch.Generator().manual_seed(0))
    inside[0], began = 0.0, now()
    for _ in range(rounds):
        sampler.sample(timed, SHAPE, condition, torch.Generator().manual_seed(0))
    total = now() - began
    bench.seconds["sampling_step"] = total / rounds / sampler.steps
    bench.runs = rounds
    bench.value("loop_overhead", (total - inside[0]) / total)


def control_networks() -> tuple[ControlNetMaisi, ControlNetRF, ControlNetRF]:
    """Return the published network as MONAI's, as ours with its operators, and as ours, on the same random weights."""
    shared = {
        "num_channels": (64, 128, 256, 512),
        "attention_levels": (False, False, True, True),
        "num_head_channels": (0, 0, 32, 32),
        "num_res_blocks": 2,
        "resblock_updown": True,
        "include_fc": True,
        "num_class_embeds": 128,
    }
    stages = (8, 32, 64)
    theirs = ControlNetMaisi(
        spatial_dims=3,
        in_channels=4,
        conditioning_embedding_in_channels=8,
        conditioning_embedding_num_channels=stages,
        use_checkpointing=False,
        **shared,
    ).eval()
    own = {"encoder": "maisi", "channels": stages, "seg_planes": "bits", "num_mask_classes": 256}
    with torch.device("meta"):
        same, ours = (
            ControlNetRF(latent_channels=4, downsampling_factor=4, native_ops=native, **own, **shared).eval()
            for native in (False, True)
        )
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    for network in (same, ours):
        network.load_state_dict(theirs.state_dict(), assign=True)
    for module in (*theirs.modules(), *same.modules()):
        if isinstance(module, SABlock):
            module.use_flash_attention = True  # the fastest; the constructor accepts it on CUDA only
    return theirs, same, ours


@torch.no_grad()
def control_step(bench: _harness.Bench, *, side: int, rounds: int) -> None:
    theirs, same, ours = control_networks()
    generator = torch.Generator().manual_seed(0)
    seg = torch.randint(133, (1, side, side, side), generator=generator)
    x, t = torch.randn(1, 4, *[side // 4] * 3, generator=generator), torch.full((1,), 500.0)
    condition = FlowCondition(torch.ones(1, dtype=torch.int64))
    planes, encoded = bit_planes(seg, 256), ours.encode(ControlCondition(seg))
    arms = {
        "monai": lambda: theirs(x, t, planes, class_labels=condition.label),
        "cached": lambda: same.residuals(x, t, condition, encoded),
        "native": lambda: ours.residuals(x, t, condition, encoded),
    }
    seconds = bench.time(arms, rounds=rounds, warmup=1)
    bench.value("control_step", seconds["monai"] / seconds["cached"])
    bench.value("control_step_native", seconds["monai"] / seconds["native"])
    wanted, found = arms["monai"]()[1], arms["native"]().mid
    bench.value("control_max_rel_diff", _harness.max_rel_diff(wanted, found))
    bench.sizes["control_image_side"] = side


def main() -> None:
    bench = _harness.start("bench_flow", __doc__)
    bench.sizes = {"latent": list(SHAPE), "network": NETWORK}
    endpoint_errors(bench)
    loop_overhead(bench, rounds=1 if bench.quick else 5)
    # Below 96³ reading the weights takes longer than computing, and the ratio does not hold for real sizes.
    control_step(bench, side=96 if bench.quick else 128, rounds=3)
    bench.report(["monai"])


if __name__ == "__main__":
    main()
