"""The noise level of volumes, from Haar wavelets.

Noise is what remains where eight neighbours are compared so that every smooth change cancels (Donoho and Johnstone
1994, Biometrika). In coarse voxels anatomy does not cancel: at 3.75 mm, the median of a whole brain finds 0.03 in a
scan without noise. So only the flattest cells count, those in which the other six differences of the eight neighbours
are small. White noise in these differences is independent of the one that is measured, so the choice does not change
it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.measures.metrics import GENERATED_BACKGROUND, foreground

NORMAL_MEDIAN = 0.6744897501960817
"""Median of the absolute value of a standard normal variable."""
FLAT = 0.05
"""Share of the cells that are taken for flat."""
FEWEST = 1000
"""Cells that are taken at least, where there are as many. They share voxels: the level is right within a tenth."""


def noise_level(
    volume: Float[Tensor, "*B H W D"], mask: Bool[Tensor, "*B H W D"] | None = None
) -> Float[Tensor, "*B"]:
    """Return the standard deviation of the white noise in each volume, in units of its intensities.

    It is the median absolute value of the finest diagonal Haar band over 0.6745, from the flattest ``FLAT`` of the
    cells of 2³ voxels whose voxels and their neighbours are in ``mask``: the border of a head is no noise. Smoothed
    noise counts less than white noise of the same deviation. Anatomy in voxels of 3.75 mm adds about 0.002 to noise of
    0.02; in those of 2 mm it adds nothing. NaN where no such cell is left, as in a mask thinner than four voxels.

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
    inside = _eroded(mask.reshape(-1, *sides))
    for axis in (1, 2, 3):
        length = inside.shape[axis] - 1
        inside = inside.narrow(axis, 1, length) & inside.narrow(axis, 0, length)
    *others, diagonal = _bands(volume.reshape(-1, *sides))
    energy = torch.zeros_like(diagonal)
    for band in others:
        energy += band.square()
    medians = [
        _median(cells.abs(), _flattest(own, where))
        for cells, own, where in zip(diagonal, energy, inside, strict=True)
    ]
    return torch.stack(medians).div(NORMAL_MEDIAN).reshape(volume.shape[:-3])


def _bands(volume: Float[Tensor, "B H W D"]) -> list[Float[Tensor, "B H-1 W-1 D-1"]]:
    """Return the seven Haar bands of differences at every voxel; the last has differences along all axes."""
    bands = [volume]
    for axis in (1, 2, 3):
        length = volume.shape[axis] - 1
        pairs = [(x.narrow(axis, 0, length), x.narrow(axis, 1, length)) for x in bands]
        # Weights of 2^-½ on each axis keep the deviation of white noise.
        bands = [(y + sign * x) * 0.5**0.5 for sign in (1, -1) for x, y in pairs]
    return bands[1:]


def _flattest(energy: Float[Tensor, "H W D"], where: Bool[Tensor, "H W D"]) -> Bool[Tensor, "H W D"]:
    """Return the ``FLAT`` share of the cells ``where``, at least ``FEWEST`` of them, that have the least energy."""
    if energy.device.type == "cpu":
        values = energy[where]
        wanted = max(int(len(values) * FLAT), min(len(values), FEWEST))
        return where & (energy <= values.kthvalue(wanted).values) if wanted else where
    return _flattest_by_order(energy, where)


def _flattest_by_order(energy: Float[Tensor, "H W D"], where: Bool[Tensor, "H W D"]) -> Bool[Tensor, "H W D"]:
    """Return what ``_flattest`` returns, without an index, as in ``_median``: nothing waits for the device."""
    count = where.sum()
    wanted = torch.maximum((count * FLAT).long(), count.clamp_max(FEWEST))
    ordered = energy.masked_fill(~where, torch.inf).flatten().sort().values
    return where & (energy <= ordered.gather(0, (wanted - 1).clamp_min(0)[None])[0])


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
