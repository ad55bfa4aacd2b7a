"""Scores of reconstructions and of sets of features: PSNR, SSIM, MS-SSIM, Fréchet distance, Inception Score.

Scores are plain functions of tensors, so nothing can end up in a state dict; callers average over batches and ranks.
Scores of volumes are one per sample, ``[B]``, and NaN where the mask is empty. LPIPS is in ``perceptual``.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from prod9.measures.ssim import PerSample, VolumeMask, Window, compare_regions, ssim_window
from prod9.types import Volume

PSNR_CAP = 100.0
"""PSNR in dB of identical volumes, so that means over cases stay finite."""

SIGMA = 1.5
"""Standard deviation of the Gaussian window of SSIM in voxels (Wang et al. 2004)."""

GENERATED_BACKGROUND = 0.02
"""Highest intensity of the background of generated volumes: decoders leave no exact zeros."""


def psnr(
    pred: Volume, target: Volume, *, data_range: float = 1.0, mask: VolumeMask | None = None
) -> PerSample:
    """Return the peak signal-to-noise ratio of each sample in dB, at most ``PSNR_CAP``.

    Args:
        pred: predicted volumes ``[B 1 H W D]``.
        target: true volumes, of the same shape.
        data_range: maximum minus minimum of possible intensities, not of this pair.
        mask: voxels that count; None for all.
    """
    error = (pred.float() - target.float()).square()
    mse = _masked_mean(error, mask)
    return (20 * torch.log10(torch.as_tensor(data_range)) - 10 * torch.log10(mse)).clamp(max=PSNR_CAP)


def ssim3d(
    pred: Volume,
    target: Volume,
    *,
    data_range: float = 1.0,
    mask: VolumeMask | None = None,
    window: int = 11,
    sigma: float = SIGMA,
) -> PerSample:
    """Return the structural similarity of each sample, Gaussian window, no padding (Wang et al. 2004).

    The window is reduced to the largest odd number that fits the smallest side. It is a product of three
    one-dimensional ones: 3 · 11 operations per voxel, not 11³.

    Args:
        pred: predicted volumes.
        target: true volumes.
        data_range: maximum minus minimum of possible intensities.
        mask: only windows with their centre in it count. In a flat background SSIM is 1, which would hide differences
            in the brain.
        window: side of the window in voxels.
        sigma: its standard deviation in voxels.
    """
    own = Window(ssim_window(pred.shape[2:], window), sigma, data_range)
    return compare_regions(pred, target, [mask], window=own, multiscale=False)[0].ssim


def ms_ssim3d(
    pred: Volume,
    target: Volume,
    *,
    data_range: float = 1.0,
    mask: VolumeMask | None = None,
    window: int = 11,
    sigma: float = SIGMA,
) -> PerSample:
    """Return the multi-scale structural similarity of each sample (Wang et al. 2003), in [0, 1].

    The sides decide the number of scales (``ms_ssim_scales``), since the usual five need sides of 176; their weights
    sum to 1. Each scale averages blocks of 2³ voxels; a block belongs to ``mask`` if any voxel does. With a mask the
    volumes are continued with background, since at coarse scales no window would fit with its centre in a small region;
    without a mask, only windows that fit count.

    Args:
        pred: predicted volumes.
        target: true volumes.
        others: see :func:`ssim3d`.
    """
    own = Window(ssim_window(pred.shape[2:], window), sigma, data_range)
    return compare_regions(pred, target, [mask], window=own)[0].ms_ssim


def mean_absolute_error(pred: Volume, target: Volume, *, mask: VolumeMask | None = None) -> PerSample:
    """Return the mean absolute difference of intensities of each sample."""
    return _masked_mean((pred.float() - target.float()).abs(), mask)


def foreground(volume: Float[Tensor, "*axes"], *, above: float = 0.0) -> Bool[Tensor, "*axes"]:
    """Return the foreground of volumes in [0, 1], which scores call brain: voxels brighter than ``above``.

    Preprocessing leaves the background of a scan at exactly 0; generated volumes need ``GENERATED_BACKGROUND``.
    """
    return volume > above


def fit_intensities(pred: Volume, target: Volume, *, mask: VolumeMask) -> Volume:
    """Return a · pred + b with the least-squares a and b of each sample for ``target`` over ``mask``.

    Brightness and contrast of a scan cannot be predicted from other scans, and without this fit they would decide the
    ranking of translations. A constant prediction becomes the target's mean.
    """
    weight = mask.float().expand_as(pred)
    count = weight.flatten(1).sum(1).clamp_min(1.0)

    def mean(values: Tensor) -> Tensor:
        return ((values * weight).flatten(1).sum(1) / count).view(-1, 1, 1, 1, 1)

    x, y = pred.float(), target.float()
    x_mean, y_mean = mean(x), mean(y)
    variance = mean((x - x_mean).square())
    slope = mean((x - x_mean) * (y - y_mean)) / variance.clamp_min(1e-12)
    return (y_mean + slope * (x - x_mean)).to(pred.dtype)


def _masked_mean(values: Float[Tensor, "B C H W D"], mask: VolumeMask | None) -> PerSample:
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.to(values.dtype)
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


class CombinedMetric:
    """``val/combined_metric``: one number, higher is better, that picks the best checkpoint.

    The weighted mean of PSNR / 40 dB, SSIM and 1 − LPIPS; each part is about 1 for a very good
    reconstruction. Weights are non-negative and at least one is positive.

    Raises:
        ValueError: for a negative weight, or no positive one.

    Example:
        >>> import torch
        >>> from prod9.measures.metrics import CombinedMetric
        >>> metric = CombinedMetric(psnr=1.0, ssim=1.0, lpips=0.0)
        >>> metric({"psnr": torch.tensor(30.0), "ssim": torch.tensor(0.25)}).item()
        0.5
    """

    def __init__(self, *, psnr: float, ssim: float, lpips: float) -> None:
        self.weights = {"psnr": psnr, "ssim": ssim, "lpips": lpips}
        if min(self.weights.values()) < 0 or sum(self.weights.values()) == 0:
            raise ValueError(
                f"weights: expected at least 0 and not all 0, got {self.weights}; use psnr=1, ssim=1, lpips=0"
            )

    def __call__(self, metrics: Mapping[str, Tensor]) -> Tensor:
        """Return one number from ``psnr`` (dB), ``ssim`` and ``lpips``, a scalar ``[]`` each.

        Those of weight 0 may be missing; ValueError for another that is.
        """
        missing = [name for name, weight in self.weights.items() if weight and name not in metrics]
        if missing:
            raise ValueError(
                f"metrics: expected {', '.join(missing)} among them, got {sorted(metrics)}; or set the weight to 0"
            )
        score = {
            "psnr": lambda value: value / 40.0,
            "ssim": lambda value: value,
            "lpips": lambda value: 1.0 - value,
        }
        parts = [weight * score[name](metrics[name]) for name, weight in self.weights.items() if weight]
        return torch.stack(parts).sum() / sum(self.weights.values())


# -- codebook -------------------------------------------------------------------------------------


LARGEST_HISTOGRAM = 2**20
"""Vocabularies up to this size are counted token by token; a larger one is never used up, and fills memory."""


def token_histogram(tokens: Int64[Tensor, "B h w d"], vocab_size: int) -> Int64[Tensor, " V"]:
    """Count each token. Histograms of batches and ranks add up."""
    return count_values(tokens.flatten(), vocab_size)


def level_histogram(tokens: Int64[Tensor, "B h w d"], levels: Sequence[int]) -> Int64[Tensor, " L"]:
    """Count each digit of each channel, one channel after the other. Histograms of batches and ranks add up.

    Tokens are mixed-radix numbers, first channel fastest.
    """
    counts, rest = [], tokens.flatten()
    for level in levels:
        counts.append(count_values(rest % level, level))
        rest = rest // level
    return torch.cat(counts)


def count_values(values: Int64[Tensor, " N"], size: int) -> Int64[Tensor, " V"]:
    """Count each of the numbers below ``size``, without waiting for the device as `torch.bincount` does."""
    return values.new_zeros(size).scatter_add_(0, values, torch.ones_like(values))


def codebook_usage(histogram: Int64[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return the share of the codebook that occurs, in [0, 1]."""
    return (histogram > 0).float().mean()


def perplexity(histogram: Int64[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return exp of the token entropy, in [1, V]: the number of equally likely codes of the same entropy."""
    p = histogram.double() / histogram.sum()
    return torch.exp(torch.special.entr(p).sum()).float()


def level_usage(histogram: Int64[Tensor, " L"], levels: Sequence[int]) -> Float[Tensor, " Z"]:
    """Return, for each latent channel, the perplexity of its digit over its number of levels, in (0, 1].

    histogram: of :func:`level_histogram`.
    """
    return torch.stack([perplexity(part) / len(part) for part in histogram.split(list(levels))])


# -- sets of features -----------------------------------------------------------------------------


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """Return the Fréchet distance between Gaussians fitted to two sets of features, in float64.

    ``|mean_a − mean_b|² + tr(A + B − 2 (A B)^½)``. With centred rows X and Y, A = XᵀX/(N−1) and B = YᵀY/(M−1),
    the last trace is the nuclear norm of X Yᵀ / √((N−1)(M−1)): exact without a matrix square root, and valid for
    fewer samples than dimensions. The estimate increases as N decreases, so compare only sets of equal N. NaN where a
    feature is not finite.
    """
    a, b, finite = _checked(a, b)
    if not finite:
        return a.new_tensor(torch.nan)
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    # The singular values of X Yᵀ are those of R_x R_yᵀ: the smaller of N and D decides the cost.
    cross = torch.linalg.matrix_norm(_thin(x) @ _thin(y).mT, ord="nuc")
    distance = (mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    return distance.clamp_min(0.0)


SAMPLES_PER_DIRECTION = 4
"""Independent samples of each set per principal direction of :func:`principal_frechet`."""


def principal_frechet(
    a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], *, directions: int
) -> Float[Tensor, ""]:
    """Return the Fréchet distance of both sets in the directions in which they vary most, in float64.

    In D dimensions the covariance of N ≪ D samples is mostly error, which is smaller for a set of less variety: the
    full distance can decrease when a set collapses. In at most N / ``SAMPLES_PER_DIRECTION`` directions
    (:func:`num_directions`) the distance increases with every loss of variety. The directions are those of both sets
    together, with equal weights, so that the distance is symmetric. NaN where a feature is not finite.
    """
    a, b, finite = _checked(a, b)
    if not finite:
        return a.new_tensor(torch.nan)
    middle = (a.mean(0) + b.mean(0)) / 2
    rows = torch.cat([(a - middle) / len(a) ** 0.5, (b - middle) / len(b) ** 0.5])
    if len(rows) < rows.shape[1]:
        # The smaller of the two square matrices gives the same coordinates.
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        coordinates = vectors[:, -directions:] * values[-directions:].clamp_min(0.0).sqrt()
    else:
        coordinates = rows @ torch.linalg.eigh(rows.mT @ rows).eigenvectors[:, -directions:]
    made, wanted = coordinates[: len(a)] * len(a) ** 0.5, coordinates[len(a) :] * len(b) ** 0.5
    return frechet_distance(made, wanted)


def num_directions(samples: int, dimensions: int) -> int:
    """Return the number of principal directions in which ``samples`` independent samples are compared, at least 1."""
    return max(1, min(dimensions, samples // SAMPLES_PER_DIRECTION))


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return both sets in float64, and whether all values are finite: else decompositions raise errors of their own."""
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"features: expected at least 2 samples in both sets, got {len(a)} and {len(b)}; add samples"
        )
    return a.double(), b.double(), bool(a.isfinite().all() and b.isfinite().all())


def _thin(x: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """Return R of x = Q R where N > D: it has the same Gram matrix and only D rows."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def inception_score(probs: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
    """Return exp of the mean KL divergence between p(class | sample) and p(class), in [1, K].

    probs: each row sums to 1. The score is meaningful only if the classifier is good on exactly these classes.
    """
    p = probs.double()
    marginal = p.mean(0, keepdim=True)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)
    return torch.exp(divergence.sum(1).mean())
