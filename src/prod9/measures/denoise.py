"""Volumes with less noise, from Haar wavelets.

In the finest bands noise is large and anatomy is small. Small values of a band become 0, in bands that no shift of the
volume changes (Coifman and Donoho 1995), so that no pattern of blocks is left.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.measures.noise import noise_level
from prod9.types import Volume


def denoised(
    volume: Volume,
    head: Bool[Tensor, "B 1 H W D"],
    *,
    threshold: float = 3.0,
    scales: int = 2,
    level: Float[Tensor, " B"] | None = None,
) -> Volume:
    """Return ``volume`` with the noise in its finest Haar bands set to 0 and larger values left as they are.

    Args:
        volume: ``[B 1 H W D]``.
        head: where the result may differ from 0.
        threshold: values of a band below so many deviations of its noise become 0.
        scales: how many times the low band is split again.
        level: deviation of the noise, ``[B]``; by default that of :func:`~prod9.measures.noise.noise_level`.
    """
    level = noise_level(volume, head)[:, 0].nan_to_num(0.0) if level is None else level
    result = _smoothed(volume.float(), threshold * level.view(-1, 1, 1, 1, 1), 1, scales)
    return torch.where(head, result, 0.0).to(volume.dtype)


def _smoothed(x: Tensor, threshold: Tensor, step: int, scales: int) -> Tensor:
    """Return ``x`` without the small values of its bands between voxels ``step`` apart, and of coarser ones."""
    bands = [x]
    for axis in (2, 3, 4):
        bands = [half for band in bands for half in _split(band, step, axis)]
    threshold = threshold / 2**1.5  # of an average of eight voxels of white noise
    low, *details = bands
    if scales > 1:
        low = _smoothed(low, threshold, 2 * step, scales - 1)
    bands = [low, *(torch.where(band.abs() > threshold, band, 0.0) for band in details)]
    for axis in (4, 3, 2):
        bands = [_joined(one, other, step, axis) for one, other in zip(bands[::2], bands[1::2], strict=True)]
    return bands[0]


def _split(x: Tensor, step: int, axis: int) -> tuple[Tensor, Tensor]:
    """Return half the sum and half the difference of voxels ``step`` apart; the sides of a volume are joined."""
    moved = x.roll(-step, axis)
    return (x + moved) / 2, (x - moved) / 2


def _joined(low: Tensor, high: Tensor, step: int, axis: int) -> Tensor:
    """Undo :func:`_split`: each voxel is in two pairs, and their two answers are averaged."""
    return (low + high + (low - high).roll(step, axis)) / 2
