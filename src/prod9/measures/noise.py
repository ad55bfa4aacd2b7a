"""The noise level of volumes, from Haar wavelets.

Noise is what remains where eight neighbours are compared so that every smooth change cancels. Anatomy is mostly smooth
from voxel to voxel, and the few voxels at its borders hardly change a median (Donoho and Johnstone 1994, Biometrika).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.measures.metrics import GENERATED_BACKGROUND, foreground

NORMAL_MEDIAN = 0.6744897501960817
"""Median of the absolute value of a standard normal variable."""


def noise_level(
    volume: Float[Tensor, "*B H W D"], mask: Bool[Tensor, "*B H W D"] | None = None
) -> Float[Tensor, "*B"]:
    """Return the standard deviation of the white noise in each volume, in units of its intensities.

    It is the median absolute value of the finest diagonal Haar band over 0.6745, from all cells of 2³ voxels whose
    voxels and their neighbours are in ``mask``: the border of a head is no noise. Smoothed noise counts less than white
    noise of the same deviation. NaN where no such cell is left, as in a mask thinner than four voxels.

    Args:
        volume: of any intensities.
        mask: voxels that count; by default those above ``GENERATED_BACKGROUND``, the brain of a volume in [0, 1].

    Example:
        >>> import torch
        >>> from prod9.measures.noise import noise_level
        >>> ramp = torch.linspace(0.0, 1.0, 24).expand(24, 24, 24)
        >>> noise = 0.05 * torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0))
        >>> round(noise_level(ramp + noise, torch.ones(24, 24, 24, dtype=torch.bool)).item(), 2)
        0.05
    """
    mask = foreground(volume, above=GENERATED_BACKGROUND) if mask is None else mask
    sides = volume.shape[-3:]
    if min(sides) < 2:
        return volume.new_full(volume.shape[:-3], torch.nan)
    band = volume.reshape(-1, *sides)
    inside = _eroded(mask.reshape(-1, *sides))
    for axis in (1, 2, 3):
        length = band.shape[axis] - 1
        # Weights of 2^-½ on each axis keep the deviation of white noise.
        band = (band.narrow(axis, 1, length) - band.narrow(axis, 0, length)) * 0.5**0.5
        inside = inside.narrow(axis, 1, length) & inside.narrow(axis, 0, length)
    medians = [_median(cells.abs(), where) for cells, where in zip(band, inside, strict=True)]
    return torch.stack(medians).div(NORMAL_MEDIAN).reshape(volume.shape[:-3])


def _median(values: Float[Tensor, "H W D"], where: Bool[Tensor, "H W D"]) -> Float[Tensor, ""]:
    """Return the lower median of ``values`` where ``where`` is True; NaN where it is nowhere."""
    if values.device.type == "cpu":
        return values[where].median() if where.any() else values.new_tensor(torch.nan)
    # Selected by order, not by index: an index needs the number of voxels from the device.
    ordered = values.masked_fill(~where, torch.inf).flatten().sort().values
    count = where.sum()
    middle = ordered.gather(0, (count - 1).clamp_min(0)[None] // 2)[0]
    return torch.where(count > 0, middle, torch.nan)


def _eroded(mask: Bool[Tensor, "B H W D"]) -> Bool[Tensor, "B H W D"]:
    """Return the voxels whose 26 neighbours are in the mask too; neighbours beyond the volume do not count."""
    outside = (~mask)[:, None].float()
    return F.max_pool3d(outside, 3, stride=1, padding=1)[:, 0] == 0
