"""Appearance of a volume in numbers that need no network: histogram, power spectrum, detail, radiomics.

Volumes are ``[H W D]`` in [0, 1]. The brain is where intensity exceeds 2% of the range, since decoders give no exact
zeros. Each function returns one row per volume; the distances compare the rows of two sets.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.measures.metrics import GENERATED_BACKGROUND, foreground, frechet_distance
from prod9.measures.noise import noise_level

Plain = Float[Tensor, "H W D"]
Row = Float[Tensor, " K"]
Rows = Float[Tensor, "N K"]

BINS = 256
FREQUENCIES = 32
LEVELS = 16
RADIOMICS = "radiomics-1"
"""Name and version of the radiomic features; raise the number when a feature changes."""

_OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))


def histogram(volume: Plain) -> Row:
    """Return the share of the brain's voxels in each of ``BINS`` equal bins of [0, 1]; zeros without a brain."""
    inside = volume[foreground(volume, above=GENERATED_BACKGROUND)].float().clamp(0.0, 1.0)
    counts = torch.histc(inside, bins=BINS, min=0.0, max=1.0)
    return counts / counts.sum().clamp_min(1.0)


def histogram_distance(a: Rows, b: Float[Tensor, "M K"]) -> float:
    """Return the earth mover's distance of the mean histograms, as a share of the intensity range."""
    difference = (a.double().mean(0) - b.double().mean(0)).cumsum(0)
    return (difference.abs().sum() / a.shape[1]).item()


def power_spectrum(volume: Plain) -> Row:
    """Return the mean power of each of ``FREQUENCIES`` shells from 0 to the Nyquist frequency, in dB.

    Shells have equal width in cycles per voxel, so that axes of unequal length count alike. On small grids a shell
    without any frequency takes the value before it. A Hann window prevents that structures at the border spread over
    all frequencies.
    """
    shape = tuple(volume.shape)
    h, w, d = (torch.hann_window(side + 2, periodic=False)[1:-1] for side in shape)
    tapered = volume.float() * h[:, None, None] * w[:, None] * d
    power = torch.fft.rfftn(tapered, norm="ortho").abs().square_()
    shell, count = _shells(shape)
    total = torch.zeros(FREQUENCIES + 1, dtype=torch.float64)
    for plane, places in zip(power, shell, strict=True):
        # Half of the spectrum of a real volume is kept; frequencies that stand for two count twice.
        weighted = plane.double()
        weighted[:, 1 : (shape[2] + 1) // 2] *= 2
        total.index_add_(0, places.flatten().long(), weighted.flatten())
    level = 10 * torch.log10(total[:-1] / count.clamp_min(1) + 1e-12)
    filled = torch.where(count > 0, torch.arange(FREQUENCIES), 0).cummax(0).values
    return level[filled].float()


@lru_cache(maxsize=2)
def _shells(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the shell of each frequency of ``rfftn`` as uint8, and the sizes of the shells.

    Frequencies beyond the last shell have the number ``FREQUENCIES``.
    """
    last = torch.fft.rfftfreq(shape[2]).square()
    across = [torch.fft.fftfreq(side).square() for side in shape[:2]]
    shell = torch.empty(shape[0], shape[1], len(last), dtype=torch.uint8)
    count = torch.zeros(FREQUENCIES + 1, dtype=torch.int64)
    for k, first in enumerate(across[0]):
        radius = (first + across[1][:, None] + last).sqrt()
        shell[k] = (radius * 2 * FREQUENCIES).round().clamp_max(FREQUENCIES).to(torch.uint8)
        places = shell[k].long()
        count += torch.bincount(places.flatten(), minlength=FREQUENCIES + 1)
        doubled = places[:, 1 : (shape[2] + 1) // 2].flatten()
        count += torch.bincount(doubled, minlength=FREQUENCIES + 1)
    return shell, count[:-1]


def spectrum_distance(a: Rows, b: Float[Tensor, "M K"]) -> float:
    """Return the root-mean-square difference of the mean spectra, in dB; both blur and noise raise it."""
    return (a.double().mean(0) - b.double().mean(0)).square().mean().sqrt().item()


def detail(volume: Plain) -> Row:
    """Return the noise level and the edge score of the brain, as shares of the intensity range; zeros without a brain.

    For the noise level see :func:`~prod9.measures.noise.noise_level`. The edge score is the mean of the largest tenth
    of the first differences, averaged over the axes. Blur lowers both; noise raises the first more than the second.
    """
    brain = foreground(volume, above=GENERATED_BACKGROUND)
    box = box_of(brain)
    inside, image = brain[box], volume[box].float().clamp(0.0, 1.0)
    edges = []
    for axis in range(3):
        length = image.shape[axis]
        if length < 3:
            continue
        kept = inside.narrow(axis, 0, length - 2) & inside.narrow(axis, 1, length - 2)
        kept &= inside.narrow(axis, 2, length - 2)
        if not kept.any():
            continue
        first = (image.narrow(axis, 2, length - 2) - image.narrow(axis, 0, length - 2))[kept].abs() / 2
        edges.append(first.topk(max(1, len(first) // 10)).values.mean())
    if not edges:
        return torch.zeros(2)
    return torch.stack([noise_level(image, inside).nan_to_num(0.0), torch.stack(edges).mean()])


def radiomics(volume: Plain) -> Row:
    """Return features of the brain's intensities and of its texture: 33 numbers, zeros without a brain.

    First order: mean, standard deviation, skewness, kurtosis, nine percentiles, entropy, and share of the volume.
    Texture: contrast, dissimilarity, homogeneity, energy, correlation and entropy of grey-level co-occurrences at
    distance 1 (mean and range over six directions) and at distance 2 (mean), with ``LEVELS`` levels of [0, 1].
    """
    brain = foreground(volume, above=GENERATED_BACKGROUND)
    first = _first_order(volume[brain].double(), brain.float().mean().double())
    box = box_of(brain)
    brain = brain[box]
    grey = _levels(volume[box])
    texture = []
    for step in (1, 2):
        rows = torch.stack([_texture(grey, brain, [step * o for o in offset]) for offset in _OFFSETS])
        texture += [rows.mean(0)] + ([rows.amax(0) - rows.amin(0)] if step == 1 else [])
    return torch.cat([first, *texture]).float()


def radiomic_distance(generated: Rows, real: Float[Tensor, "M K"]) -> float:
    """Return the Fréchet distance of radiomic features, each divided by its standard deviation in the real set.

    The idea is that of Konz et al. (2024), whose features are others. Features that do not vary in the real set are not
    divided.
    """
    deviation = real.double().std(0)
    scale = torch.where(deviation > 1e-9, deviation, 1.0)
    return frechet_distance(generated.double() / scale, real.double() / scale).item()


def _first_order(values: Tensor, share: Tensor) -> Tensor:
    levels = torch.tensor([0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99], dtype=torch.float64)
    if not len(values):
        return torch.zeros(15, dtype=torch.float64)
    mean, deviation = values.mean(), values.std(correction=0)
    z = (values - mean) / deviation.clamp_min(1e-6)
    # torch.quantile refuses more than 2²⁴ values.
    ordered = values.sort().values
    percentiles = ordered[(levels * (len(ordered) - 1)).round().long()]
    p = torch.histc(values.float(), bins=64, min=0.0, max=1.0).double() / len(values)
    entropy = torch.special.entr(p).sum()
    moments = torch.stack([mean, deviation, z.pow(3).mean(), z.pow(4).mean()])
    return torch.cat([moments, percentiles, entropy[None], share[None]])


def box_of(brain: Tensor) -> tuple[slice, ...]:
    """Return the smallest box that holds the brain; the whole volume without a brain."""
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):
        places = brain.any(others[1]).any(others[0]).nonzero()
        box.append(slice(int(places.min()), int(places.max()) + 1) if len(places) else slice(None))
    return tuple(box)


def _levels(volume: Plain) -> Tensor:
    """Return the grey level of each voxel as uint8, which takes an eighth of the memory of default integers."""
    return (volume.clamp(0.0, 1.0) * LEVELS).clamp_max(LEVELS - 1).to(torch.uint8)


def _texture(volume: Tensor, brain: Tensor, offset: list[int]) -> Tensor:
    """Return six measures of the co-occurrences at ``offset``; ``volume`` holds intensities or grey levels."""
    grey = volume if volume.dtype == torch.uint8 else _levels(volume)
    here = tuple(slice(None, -o or None) for o in offset)
    there = tuple(slice(o, None) for o in offset)
    both = brain[here] & brain[there]
    pairs = grey[here][both] * LEVELS + grey[there][both]
    if not len(pairs):
        return torch.zeros(6, dtype=torch.float64)
    p = torch.bincount(pairs, minlength=LEVELS**2).double().view(LEVELS, LEVELS)
    p = (p + p.T) / (2 * len(pairs))
    i = torch.arange(LEVELS, dtype=torch.float64)
    gap = (i[:, None] - i).abs()
    mean = (p.sum(1) * i).sum()
    variance = (p.sum(1) * (i - mean).square()).sum()
    covariance = (p * (i[:, None] - mean) * (i - mean)).sum()
    # A flat region is perfectly correlated with itself.
    correlation = covariance / variance if variance > 1e-12 else torch.ones((), dtype=torch.float64)
    return torch.stack(
        [
            (p * gap.square()).sum(),
            (p * gap).sum(),
            (p / (1 + gap.square())).sum(),
            p.square().sum(),
            correlation,
            torch.special.entr(p).sum(),
        ]
    )
