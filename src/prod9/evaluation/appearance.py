"""What a volume looks like in numbers that need no network: histogram, power spectrum, radiomics.

Volumes are ``[H W D]`` in [0, 1]. The brain is where intensity exceeds 2% of the range, since decoders leave no
exact zeros. Each function gives one row a volume; the distances compare the rows of two sets.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.training.metrics import frechet_distance

Plain = Float[Tensor, "H W D"]
Row = Float[Tensor, " K"]
Rows = Float[Tensor, "N K"]

BRAIN = 0.02
BINS = 256
FREQUENCIES = 32
LEVELS = 16
RADIOMICS = "radiomics-1"
"""Name and version of the set of radiomic features; raise the number when a feature changes."""

_OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))


def histogram(volume: Plain) -> Row:
    """Return the share of the brain's voxels in each of ``BINS`` equal bins of [0, 1]; zeros without a brain."""
    inside = volume[volume > BRAIN].float().clamp(0.0, 1.0)
    counts = torch.histc(inside, bins=BINS, min=0.0, max=1.0)
    return counts / counts.sum().clamp_min(1.0)


def histogram_distance(a: Rows, b: Float[Tensor, "M K"]) -> float:
    """Return the earth mover's distance of the mean histograms, as a share of the intensity range."""
    difference = (a.double().mean(0) - b.double().mean(0)).cumsum(0)
    return (difference.abs().sum() / a.shape[1]).item()


def power_spectrum(volume: Plain) -> Row:
    """Return the mean power of each of ``FREQUENCIES`` shells from 0 to the Nyquist frequency, in dB.

    Shells are of equal width in cycles a voxel, so axes of unequal length count alike; a shell without any
    frequency, on small grids, takes the one before it. A Hann window keeps what touches the border from
    spreading over all frequencies.
    """
    windows = [torch.hann_window(side + 2, periodic=False)[1:-1] for side in volume.shape]
    taper = windows[0][:, None, None] * windows[1][:, None] * windows[2]
    power = torch.fft.fftn(volume.float() * taper, norm="ortho").abs().square()
    axes = torch.meshgrid(*[torch.fft.fftfreq(side) for side in volume.shape], indexing="ij")
    radius = torch.stack([axis.square() for axis in axes]).sum(0).sqrt()
    shell = (radius * 2 * FREQUENCIES).round().long()
    kept = shell < FREQUENCIES
    total = torch.zeros(FREQUENCIES).index_add_(0, shell[kept], power[kept])
    count = torch.bincount(shell[kept], minlength=FREQUENCIES)
    level = 10 * torch.log10(total / count.clamp_min(1) + 1e-12)
    filled = torch.where(count > 0, torch.arange(FREQUENCIES), 0).cummax(0).values
    return level[filled]


def spectrum_distance(a: Rows, b: Float[Tensor, "M K"]) -> float:
    """Return the root-mean-square difference of the mean spectra, in dB: blur and noise both raise it."""
    return (a.double().mean(0) - b.double().mean(0)).square().mean().sqrt().item()


def radiomics(volume: Plain) -> Row:
    """Return features of the brain's intensities and of its texture: 33 numbers, zeros without a brain.

    First order: mean, deviation, skewness, kurtosis, nine percentiles, entropy, share of the volume. Texture:
    contrast, dissimilarity, homogeneity, energy, correlation and entropy of grey-level co-occurrences at
    distance 1 (mean and range over six directions) and at distance 2 (mean), ``LEVELS`` levels of [0, 1].
    """
    brain = volume > BRAIN
    first = _first_order(volume[brain].double(), brain.double().mean())
    texture = []
    for step in (1, 2):
        rows = torch.stack([_texture(volume, brain, [step * o for o in offset]) for offset in _OFFSETS])
        texture += [rows.mean(0)] + ([rows.amax(0) - rows.amin(0)] if step == 1 else [])
    return torch.cat([first, *texture]).float()


def radiomic_distance(generated: Rows, real: Float[Tensor, "M K"]) -> float:
    """Return the Fréchet distance of radiomic features, each divided by its deviation in the real set.

    After Konz et al. (2024), whose set is larger and whose numbers are others. Features that do not vary in
    the real set count as they are.
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
    # Sorted, not torch.quantile: that refuses more than 2²⁴ values.
    ordered = values.sort().values
    percentiles = ordered[(levels * (len(ordered) - 1)).round().long()]
    p = torch.histc(values.float(), bins=64, min=0.0, max=1.0).double() / len(values)
    entropy = torch.special.entr(p).sum()
    moments = torch.stack([mean, deviation, z.pow(3).mean(), z.pow(4).mean()])
    return torch.cat([moments, percentiles, entropy[None], share[None]])


def _texture(volume: Plain, brain: Tensor, offset: list[int]) -> Tensor:
    grey = (volume.clamp(0.0, 1.0) * LEVELS).long().clamp_max(LEVELS - 1)
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
