"""Structural similarity of large volumes, slab by slab, without whole maps in memory.

The maps of a pair are several times as large as the pair; slabs of them stay in the processor's caches. One pass serves
any number of regions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.types import Volume

VolumeMask = Bool[Tensor, "B C H W D"]
PerSample = Float[Tensor, " B"]
Planes = Float[Tensor, "N H W D"]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weight of each scale, finest first (Wang et al. 2003)."""

_SLAB = 24
"""Planes of a map that are computed at once: for a head at 1 mm each temporary takes 4 MB."""
_TILE = 32


@dataclass(frozen=True)
class Similarity:
    """SSIM and MS-SSIM of each sample over one region, NaN where no window is centred in it."""

    ssim: PerSample
    ms_ssim: PerSample


@dataclass(frozen=True)
class Window:
    """The Gaussian window and the two constants of SSIM, for one range of intensities."""

    size: int
    sigma: float
    data_range: float

    def kernel(self) -> Float[Tensor, " n"]:
        """Return the window along one axis; its sum is 1."""
        offset = torch.arange(self.size, dtype=torch.float32) - (self.size - 1) / 2
        kernel = torch.exp(-(offset**2) / (2 * self.sigma**2))
        return kernel / kernel.sum()


def ssim_window(sides: Sequence[int], window: int = 11) -> int:
    """Return ``window``, at most the largest odd number that fits the smallest side."""
    smallest = min(sides)
    return min(window, smallest - (smallest + 1) % 2)


def ms_ssim_scales(sides: Sequence[int], *, window: int = 11) -> int:
    """Return the number of scales for volumes of ``sides``, at most five, such that the window fits the coarsest."""
    size = ssim_window(sides, window)
    return max(s for s in range(1, len(MS_SSIM_WEIGHTS) + 1) if min(sides) // 2 ** (s - 1) >= size)


def compare_regions(
    pred: Volume,
    target: Volume,
    masks: Sequence[VolumeMask | None],
    *,
    window: Window,
    multiscale: bool = True,
) -> list[Similarity]:
    """Return the similarity over each of ``masks``, None for the whole volume; see ``metrics.ssim3d``.

    Args:
        pred: predicted volumes.
        target: true volumes.
        masks: the regions, all computed from the same maps.
        window: Gaussian window and range of intensities.
        multiscale: without it, ``ms_ssim`` is that of the first scale only.
    """
    scales = ms_ssim_scales(pred.shape[2:], window=window.size) if multiscale else 1
    total = sum(MS_SSIM_WEIGHTS[:scales])
    x, y = pred.float(), target.float()
    inside = [None if mask is None else mask.float() for mask in masks]
    ssim: list[Tensor] = []
    score = [torch.ones(len(x), device=x.device) for _ in masks]
    for scale in range(scales):
        regions = [None if weight is None else weight > 0 for weight in inside]
        sums = _Sums(x, y, regions, window, padded=multiscale)
        if scale == 0:
            ssim = sums.ssim
        values = sums.padded_ssim if scale == scales - 1 else sums.padded_structure
        weight = MS_SSIM_WEIGHTS[scale] / total
        # A negative mean has no real power; 0 is the lowest value of this score.
        score = [one * mean.clamp_min(0.0) ** weight for one, mean in zip(score, values, strict=True)]
        if scale < scales - 1:
            x, y = F.avg_pool3d(x, 2), F.avg_pool3d(y, 2)
            # A block belongs to a region if any voxel does.
            inside = [None if weight is None else F.max_pool3d(weight, 2) for weight in inside]
    return [Similarity(one, several) for one, several in zip(ssim, score, strict=True)]


class _Sums:
    """Means of the maps of one scale, ``[B]`` for each region.

    ssim: over windows that fit. padded_ssim, padded_structure: for a region over all windows with their centre in it,
    with volumes continued by background; for the whole volume over windows that fit.
    """

    def __init__(
        self, x: Volume, y: Volume, regions: Sequence[Tensor | None], window: Window, *, padded: bool
    ) -> None:
        margin = window.size // 2
        around = margin if padded and any(region is not None for region in regions) else 0
        zeros = torch.zeros(3, len(x), device=x.device, dtype=torch.float64)
        sums = [zeros.clone() for _ in regions]
        counts = [zeros.clone() for _ in regions]
        inner = tuple(slice(margin, side - margin) for side in x.shape[2:])
        for b in range(len(x)):
            for rows, luminance, structure in slabs(x[b], y[b], window, around=around):
                product = luminance * structure
                # The centres of the windows in the volume, and those among them whose window fits.
                start = rows.start + margin - around
                fits = tuple(
                    slice(max(0, own.start - first), max(0, own.stop - first))
                    for own, first in zip(inner, (start, margin - around, margin - around), strict=True)
                )
                centres = (
                    slice(start, start + product.shape[1]),
                    *(slice(margin - around, side + around - margin) for side in x.shape[3:]),
                )
                for k, region in enumerate(regions):
                    whole = None if region is None else region[b][:, *centres]
                    here = (slice(None), *fits)
                    _add(sums[k], counts[k], 0, b, product[here], None if whole is None else whole[here])
                    if padded:
                        cut = here if whole is None else (slice(None),)
                        _add(sums[k], counts[k], 1, b, product[cut], whole)
                        _add(sums[k], counts[k], 2, b, structure[cut], whole)
        means = [(s / c).float() for s, c in zip(sums, counts, strict=True)]
        self.ssim = [mean[0] for mean in means]
        self.padded_ssim = [mean[1 if padded else 0] for mean in means]
        self.padded_structure = [mean[2] for mean in means]


def _add(sums: Tensor, counts: Tensor, row: int, b: int, values: Tensor, region: Tensor | None) -> None:
    if region is None:
        sums[row, b] += values.sum()
        counts[row, b] += values.numel()
    else:
        sums[row, b] += (values * region).sum()
        counts[row, b] += region.sum()


def slabs(x: Planes, y: Planes, window: Window, *, around: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (rows of the map, luminance, contrast and structure) of the map of one sample ``[C H W D]``.

    Args:
        x: one sample ``[C H W D]``.
        y: another, of the same shape.
        window: of the means.
        around: voxels of background added on each side of the volumes.
    """
    kernel, size = window.kernel().to(x.device), window.size
    c1, c2 = (0.01 * window.data_range) ** 2, (0.03 * window.data_range) ** 2
    length = x.shape[1] + 2 * around - size + 1
    for start in range(0, length, _SLAB):
        rows = slice(start, min(start + _SLAB, length))
        a, b = (_cut(volume, rows, size, around) for volume in (x, y))
        mu_a, mu_b = blur(a, kernel), blur(b, kernel)
        # Rounding may make a variance of a flat region slightly negative.
        var_a = (blur(a * a, kernel) - mu_a**2).clamp_min(0)
        var_b = (blur(b * b, kernel) - mu_b**2).clamp_min(0)
        covariance = blur(a * b, kernel) - mu_a * mu_b
        luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
        yield rows, luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _cut(volume: Planes, rows: slice, size: int, around: int) -> Tensor:
    """Return the planes from which the rows of a map are computed, with background around them."""
    first, last = rows.start - around, rows.stop + size - 1 - around
    inside = volume[:, max(0, first) : max(0, last)]
    before, after = max(0, -first), max(0, last - volume.shape[1])
    if not (around or before or after):
        return inside
    return F.pad(inside, (around, around, around, around, before, after))


def blur(x: Planes, kernel: Float[Tensor, " n"]) -> Planes:
    """Filter each axis in turn, valid positions only.

    Products with banded matrices, tile by tile, are several times faster on CPUs than convolutions of one channel.
    """
    for axis in (3, 2, 1):
        x = _blur_axis(x, kernel, axis)
    return x


def _blur_axis(x: Planes, kernel: Tensor, axis: int) -> Planes:
    reach = len(kernel) - 1
    length = x.shape[axis] - reach
    parts = []
    for start in range(0, length, _TILE):
        count = min(_TILE, length - start)
        band = _band(kernel, count)
        tile = x.narrow(axis, start, count + reach)
        if axis == 3:
            parts.append(tile @ band.mT)
        elif axis == 2:
            parts.append(band @ tile)
        else:
            parts.append((band @ tile.flatten(2)).unflatten(2, x.shape[2:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _band(kernel: Tensor, count: int) -> Float[Tensor, "n m"]:
    """Return the matrix that filters ``count`` positions: row k holds the kernel from column k on."""
    band = kernel.new_zeros(count, count + len(kernel) - 1)
    for place, weight in enumerate(kernel):
        band.diagonal(place)[:] = weight
    return band
