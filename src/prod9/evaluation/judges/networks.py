"""Parts of the small 3D networks that scores are computed with, and their reproducible construction."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prod9.host_copies import placed
from prod9.measures.metrics import GENERATED_BACKGROUND, foreground
from prod9.system.progress import Progress
from prod9.types import Volume, VolumeOut

Network = TypeVar("Network", bound=nn.Module)

MAX_SIDE = 64
"""Longer volumes are averaged down first: these networks need contrast and coarse shape only."""


def build_seeded(build: Callable[[], Network], *, seed: int) -> Network:
    """Return ``build()`` with He-initialised weights that depend on ``seed`` alone.

    The network is built on the meta device, so the global random state is neither read nor changed.
    """
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d):
            module.reset_parameters()
    # Twice as fast on a CPU; ten times for widths that are not multiples of 16.
    return network.to(memory_format=torch.channels_last_3d)


def train_judge(
    network: Network,
    loss: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    warmup: float = 0.3,
    progress: Progress | None = None,
) -> Network:
    """Train ``network`` with AdamW and one cycle of the learning rate, and return it in evaluation mode.

    Args:
        network: changed in place.
        loss: draws a batch and returns its loss; called once per step.
        steps: training steps.
        learning_rate: highest learning rate.
        warmup: share of the steps in which the learning rate grows.
        progress: called after each step.
    """
    if warmup * steps == 1:  # it would end where it begins, and OneCycleLR divides by its length
        warmup = 2 / steps
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=warmup
    )
    for step in range(steps):
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    return network.eval().requires_grad_(False)


def conv_block(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """Return a 3³ convolution, batch normalisation and ReLU.

    Batch statistics, unlike those of each volume, keep the differences between volumes: the modality classifier gains
    ten points on held-out reconstructions over group normalisation.
    """
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(),
    )


def coarsen(x: Volume) -> VolumeOut:
    """Average blocks until no side is longer than ``MAX_SIDE``."""
    factor = -(-max(x.shape[2:]) // MAX_SIDE)
    return F.avg_pool3d(x, factor, ceil_mode=True) if factor > 1 else x


def standardise(x: Volume) -> Volume:
    """Shift and scale each volume to mean 0 and standard deviation 1 over its brain, and 0 outside.

    The brain is where intensity exceeds 2% of the range: decoders give no exact zeros.
    """
    brain = foreground(x, above=GENERATED_BACKGROUND).float()
    count = brain.flatten(1).sum(1).clamp_min(1.0).view(-1, 1, 1, 1, 1)

    def total(values: Tensor) -> Tensor:
        return values.flatten(1).sum(1).view(-1, 1, 1, 1, 1)

    mean = total(x * brain) / count
    std = (total((x - mean).square() * brain) / count).sqrt()
    return (x - mean) / (std + 1e-3) * brain


def augment_intensity(x: Volume, generator: torch.Generator) -> Volume:
    """Apply a random gamma, gain and offset to the brain of each volume, clipped to [0, 1].

    Contrast between tissues remains; the absolute scale does not.
    """
    gamma = torch.exp(_uniform(x, -0.3, 0.3, generator))
    gain = _uniform(x, 0.75, 1.25, generator)
    offset = _uniform(x, -0.08, 0.08, generator)
    brain = foreground(x, above=GENERATED_BACKGROUND)
    # The lower bound prevents that an offset cuts holes into the brain.
    return torch.where(brain, (gain * x.clamp_min(0) ** gamma + offset).clamp(0.021, 1.0), x.clamp(0.0, 1.0))


def augment_sharpness(x: Volume, generator: torch.Generator) -> Volume:
    """Mix each volume with a copy of half the resolution, in a random proportion.

    A network trained on scans only would rely on their noise and sharpness, which decoders do not reproduce.
    """
    coarse = F.avg_pool3d(x, 2, ceil_mode=True)
    smooth = F.interpolate(coarse, size=x.shape[2:], mode="trilinear")
    # The background stays exactly 0, so that blur does not enlarge the brain.
    return torch.where(x > 0, x.lerp(smooth, _uniform(x, 0.0, 1.0, generator)), x)


def augment_geometry(x: Tensor, generator: torch.Generator, *, flip_axis: int = 2, shift: int = 2) -> Tensor:
    """Mirror left-right with probability ½ and roll by up to ``shift`` voxels, with one draw for the whole batch.

    Args:
        x: ``[B C H W D]``.
        generator: draws both.
        flip_axis: of ``x``, left to right.
        shift: the most voxels along each axis.
    """
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(flip_axis)
    shifts = torch.randint(-shift, shift + 1, (3,), generator=generator).tolist()
    return x.roll(shifts, dims=(2, 3, 4))


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return a number per sample of ``x``, drawn on the CPU, on its device."""
    drawn = (low + (high - low) * torch.rand(len(x), generator=generator)).view(-1, 1, 1, 1, 1)
    return placed(drawn, x.device)
