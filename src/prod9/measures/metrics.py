"""Scores of reconstructions and of sets of features: PSNR, SSIM, MS-SSIM, Fréchet distance, Inception Score.

Everything here is a plain function of tensors, so nothing can end up in a state dict and averaging over
batches and ranks is the caller's. Scores of volumes come one a sample, ``[B]``, NaN where the mask is empty.
The learned score, LPIPS, lives in
``perceptual`` with the other networks.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from prod9.measures.perceptual import LPIPS as LPIPS
from prod9.measures.ssim import MS_SSIM_WEIGHTS as MS_SSIM_WEIGHTS
from prod9.measures.ssim import Window, compare_regions
from prod9.measures.ssim import ms_ssim_scales as ms_ssim_scales
from prod9.measures.ssim import ssim_window as ssim_window
from prod9.types import Volume

PSNR_CAP = 100.0
"""PSNR in dB of identical volumes: a mean over cases has to stay finite."""

SIGMA = 1.5
"""Deviation of the Gaussian window of SSIM, in voxels (Wang et al. 2004)."""

VolumeMask = Bool[Tensor, "B C H W D"]
PerSample = Float[Tensor, " B"]


def psnr(
    pred: Volume, target: Volume, *, data_range: float = 1.0, mask: VolumeMask | None = None
) -> PerSample:
    """Return the peak signal-to-noise ratio of each sample in dB, at most ``PSNR_CAP``.

    data_range: maximum minus minimum of what intensities may be, not of this pair. mask: voxels that count.
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

    The window is cut to the largest odd number that fits the smallest side. With a mask, the mean is over the
    windows whose centre it covers: in a flat background SSIM is 1 and would hide what happens in the brain.
    The window is a product of three one-dimensional ones, so it costs 3 · 11 operations a voxel, not 11³.
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

    Scales follow from the sides (``ms_ssim_scales``), since the usual five need sides of 176; the weights of
    those used sum to 1. Each scale averages blocks of 2³ voxels; a block belongs to ``mask`` if any voxel does.
    With a mask the volumes go on as background, or at coarse scales no window would be centred in a small region;
    without one, only windows that fit count.
    """
    own = Window(ssim_window(pred.shape[2:], window), sigma, data_range)
    return compare_regions(pred, target, [mask], window=own)[0].ms_ssim


def mean_absolute_error(pred: Volume, target: Volume, *, mask: VolumeMask | None = None) -> PerSample:
    """Return the mean absolute difference of intensities of each sample."""
    return _masked_mean((pred.float() - target.float()).abs(), mask)


def foreground(volume: Volume) -> VolumeMask:
    """Return the brain of skull-stripped volumes: preprocessing leaves the background at exactly 0."""
    return volume > 0


def fit_intensities(pred: Volume, target: Volume, *, mask: VolumeMask) -> Volume:
    """Return a · pred + b with the a and b of each sample that come closest to ``target`` over ``mask``.

    Least squares. A scan's own brightness and contrast can't be read from other scans: compared
    without this fit, translations are ranked by luck. A constant prediction becomes the target's mean.
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
    """

    def __init__(self, *, psnr: float, ssim: float, lpips: float) -> None:
        self.weights = {"psnr": psnr, "ssim": ssim, "lpips": lpips}
        if min(self.weights.values()) < 0 or sum(self.weights.values()) == 0:
            raise ValueError(
                f"weights must be non-negative and not all 0, got {self.weights}; use psnr=1, ssim=1, lpips=0"
            )

    def __call__(self, metrics: Mapping[str, Tensor]) -> Tensor:
        """Combine the entries ``psnr`` (dB), ``ssim`` and ``lpips``; those of weight 0 may be missing."""
        missing = [name for name, weight in self.weights.items() if weight and name not in metrics]
        if missing:
            raise ValueError(
                f"metrics must hold {', '.join(missing)}, got {sorted(metrics)}; or set the weight to 0"
            )
        score = {
            "psnr": lambda value: value / 40.0,
            "ssim": lambda value: value,
            "lpips": lambda value: 1.0 - value,
        }
        parts = [weight * score[name](metrics[name]) for name, weight in self.weights.items() if weight]
        return torch.stack(parts).sum() / sum(self.weights.values())


# -- codebook -------------------------------------------------------------------------------------


def token_histogram(tokens: Int64[Tensor, "B h w d"], vocab_size: int) -> Int64[Tensor, " V"]:
    """Count each token. Histograms of batches and ranks add up."""
    return count_values(tokens.flatten(), vocab_size)


def count_values(values: Int64[Tensor, " N"], size: int) -> Int64[Tensor, " V"]:
    """Count each of the numbers below ``size``; `torch.bincount` would wait for the device to learn the largest."""
    return values.new_zeros(size).scatter_add_(0, values, torch.ones_like(values))


def codebook_usage(histogram: Int64[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return the share of the codebook that occurs at all, in [0, 1]."""
    return (histogram > 0).float().mean()


def perplexity(histogram: Int64[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return exp of the token entropy, in [1, V]: as many equally likely codes would be as informative."""
    p = histogram.double() / histogram.sum()
    return torch.exp(torch.special.entr(p).sum()).float()


def level_usage(histogram: Int64[Tensor, " V"], levels: Sequence[int]) -> Float[Tensor, " Z"]:
    """Return, for each latent channel, the perplexity of its digit over its number of levels, in (0, 1].

    Tokens are mixed-radix numbers whose first channel runs fastest.
    """
    grid = histogram.reshape(tuple(reversed(levels)))
    num = len(levels)
    axes = [tuple(a for a in range(num) if a != num - 1 - channel) for channel in range(num)]
    marginals = [grid.sum(dim=a) if a else grid for a in axes]
    return torch.stack([perplexity(m) / m.numel() for m in marginals])


# -- sets of features -----------------------------------------------------------------------------


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """Return the Fréchet distance between Gaussians fitted to two sets of features, in float64.

    |mean_a − mean_b|² + tr(A + B − 2 (A B)^½). With centred rows X and Y, A = XᵀX/(N−1) and B = YᵀY/(M−1),
    the last trace is the nuclear norm of X Yᵀ / √((N−1)(M−1)): exact, no matrix square root, and valid for
    fewer samples than dimensions. The estimate grows as N falls, so compare equal N only. NaN where a feature is
    not finite.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"both sets must hold at least 2 samples, got {len(a)} and {len(b)}; add samples")
    a, b = a.double(), b.double()
    if not _all_finite(a, b):
        return a.new_tensor(torch.nan)
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    # The singular values of X Yᵀ are those of R_x R_yᵀ: the smaller of N and D decides the cost.
    cross = torch.linalg.matrix_norm(_thin(x) @ _thin(y).mT, ord="nuc")
    distance = (mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    return distance.clamp_min(0.0)


SAMPLES_PER_DIRECTION = 4
"""Independent samples in each set for one principal direction of :func:`principal_frechet`."""


def principal_frechet(
    a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], *, directions: int
) -> Float[Tensor, ""]:
    """Return the Fréchet distance of both sets in the directions in which they vary most, in float64.

    In D dimensions the covariance of N ≪ D samples is mostly error, and a set of less variety has less of that:
    the full distance of a collapsed set is the smaller one. In at most N / ``SAMPLES_PER_DIRECTION``
    (:func:`num_directions`) directions it grows with every loss of variety. The directions are those of both sets
    together, each counting the same, so that two samples of one distribution are treated alike. NaN where a feature is
    not finite.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"both sets must hold at least 2 samples, got {len(a)} and {len(b)}; add samples")
    a, b = a.double(), b.double()
    if not _all_finite(a, b):
        return a.new_tensor(torch.nan)
    middle = (a.mean(0) + b.mean(0)) / 2
    rows = torch.cat([(a - middle) / len(a) ** 0.5, (b - middle) / len(b) ** 0.5])
    if len(rows) < rows.shape[1]:
        # Of the smaller of the two square matrices: the same coordinates.
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        coordinates = vectors[:, -directions:] * values[-directions:].clamp_min(0.0).sqrt()
    else:
        coordinates = rows @ torch.linalg.eigh(rows.mT @ rows).eigenvectors[:, -directions:]
    made, wanted = coordinates[: len(a)] * len(a) ** 0.5, coordinates[len(a) :] * len(b) ** 0.5
    return frechet_distance(made, wanted)


def num_directions(samples: int, dimensions: int) -> int:
    """Return in how many principal directions ``samples`` independent samples can be compared, at least 1."""
    return max(1, min(dimensions, samples // SAMPLES_PER_DIRECTION))


def _all_finite(a: Tensor, b: Tensor) -> bool:
    # A decomposition of what is not finite raises an error of its own.
    return bool(a.isfinite().all() and b.isfinite().all())


def _thin(x: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """Return R of x = Q R where that is smaller: it has the same Gram matrix and min(N, D) rows."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def inception_score(probs: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
    """Return exp of the mean KL divergence between p(class | sample) and p(class), in [1, K].

    probs: each row sums to 1. It says nothing unless the classifier is good on exactly these classes.
    """
    p = probs.double()
    marginal = p.mean(0, keepdim=True)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)
    return torch.exp(divergence.sum(1).mean())
