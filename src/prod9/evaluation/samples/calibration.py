"""Whether several samples of one volume are as far apart as they are from the truth.

Samples of a calibrated model and the truth are exchangeable: nothing tells the truth from one more sample. All scores
here follow from that, for any number of samples from two. They compare ``N`` samples with the truth in ``V`` voxels.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

Samples = Float[Tensor, "N V"]
Truth = Float[Tensor, " V"]

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Nominal shares of the voxels that intervals are to hold, 5% to 95%."""
SHOWN = (0.5, 0.8, 0.9, 0.95)
"""Those that tables show."""


@lru_cache(maxsize=64)
def interval_factor(count: int, level: float) -> float:
    """Return half of the width of a prediction interval, in standard deviations of ``count`` samples.

    t · √(1 + 1/N), with the quantile (1 + level) / 2 of Student's t distribution with N − 1 degrees of freedom: the
    interval for one more value of a normal distribution of which N are known. Without the root and with the normal
    quantile, a 90% interval from four samples would hold 76%.
    """
    from scipy import stats  # takes half a second to import

    return float(stats.t.ppf((1 + level) / 2, count - 1)) * math.sqrt(1 + 1 / count)


def score_samples(samples: Samples, truth: Truth) -> dict[str, float]:
    """Return the scores of samples, by name; NaN for the empty set of voxels.

    - ``spread_correlation``: Pearson's correlation of the samples' standard deviation with the absolute error of their
      mean; NaN where either is the same everywhere.
    - ``spread_ratio``: √(mean variance · (1 + 1/N)) over the root-mean-square error of the mean. 1 if calibrated, below
      1 if the samples are too sure (Fortin et al. 2014, J. Hydrometeorology).
    - ``coverage_50`` … ``coverage_95``: share of the voxels whose truth lies in the interval mean ± factor · standard
      deviation; see :func:`interval_factor`.
    - ``calibration_error``: mean absolute difference of coverage and nominal level over ``LEVELS``.
    - ``width_90``: mean width of the 90% interval, the sharpness.
    - ``crps``: continuous ranked probability score, see :func:`fair_crps`, and ``mean_error``, the mean absolute error
      of the mean, which is the same score of a forecast without spread.
    """
    if truth.numel() == 0:
        return dict.fromkeys(
            ("spread_correlation", "spread_ratio", *(f"coverage_{100 * p:.0f}" for p in SHOWN),
             "calibration_error", "width_90", "crps", "mean_error"),
            math.nan,
        )  # fmt: skip
    count = len(samples)
    mean, deviation = samples.mean(0), samples.std(0)
    error = (truth - mean).abs()
    covered = coverage_curve(samples, truth)
    squared = error.square().mean()
    ratio = (deviation.square().mean() * (1 + 1 / count) / squared).sqrt()
    return {
        "spread_correlation": correlation(deviation, error),
        "spread_ratio": ratio.item() if squared > 0 else math.nan,
        **{f"coverage_{100 * p:.0f}": covered[LEVELS.index(p)] for p in SHOWN},
        "calibration_error": sum(abs(c - p) for c, p in zip(covered, LEVELS, strict=True)) / len(LEVELS),
        "width_90": 2 * interval_factor(count, 0.9) * deviation.mean().item(),
        "crps": fair_crps(samples, truth),
        "mean_error": error.mean().item(),
    }


def coverage_curve(samples: Samples, truth: Truth) -> list[float]:
    """Return the share of the voxels whose truth lies in the interval of each of ``LEVELS``, ends included."""
    error, deviation = (truth - samples.mean(0)).abs(), samples.std(0)
    # Equal samples that equal the truth: their mean may differ from it by rounding.
    slack = 4 * torch.finfo(truth.dtype).eps * truth.abs()
    return [
        (error <= interval_factor(len(samples), level) * deviation + slack).double().mean().item()
        for level in LEVELS
    ]


def rank_levels(count: int) -> list[float]:
    """Return the nominal coverage of the intervals from the k-th lowest to the k-th highest sample, widest last."""
    return [1 - 2 * k / (count + 1) for k in range(count // 2, 0, -1)]


def rank_curve(samples: Samples, truth: Truth) -> list[float]:
    """Return the share of the voxels whose truth lies in each of these intervals, in the order of :func:`rank_levels`.

    Exact for exchangeable values of any continuous distribution (Hamill 2001, Monthly Weather Review); there are only
    as many intervals as half of the samples. Both ends are included.
    """
    not_above = (samples <= truth).sum(0)
    not_below = (samples >= truth).sum(0)
    fewest = torch.minimum(not_above, not_below)
    return [(fewest >= k).double().mean().item() for k in range(len(samples) // 2, 0, -1)]


def fair_crps(samples: Samples, truth: Truth) -> float:
    """Return the continuous ranked probability score, mean over voxels, in units of the intensities; lower is better.

    ``mean |xᵢ − y| − Σ_{i<j} |xᵢ − xⱼ| / (N (N − 1))``: its expectation is that of infinitely many samples of the same
    model, so that scores of 4 and of 16 samples can be compared (Ferro 2014, Q. J. R. Meteorol. Soc.).
    """
    count = len(samples)
    ordered = samples.sort(dim=0).values
    # The i-th of the ordered samples is the higher one of i pairs and the lower one of N − 1 − i.
    weights = 2 * torch.arange(count, dtype=samples.dtype, device=samples.device) - count + 1
    apart = (weights[:, None] * ordered).sum(0) / (count * (count - 1))
    return ((samples - truth).abs().mean(0) - apart).mean().item()


def correlation(a: Float[Tensor, " V"], b: Float[Tensor, " V"]) -> float:
    """Return Pearson's correlation; NaN where either is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()


def one_for_truth(samples: Samples, scores: Sequence[str]) -> dict[str, float]:
    """Return ``scores`` with the last sample in place of the truth: what they would be if the model were calibrated.

    NaN for two samples, of which only one would be left.
    """
    if len(samples) < 3:
        return dict.fromkeys(scores, math.nan)
    found = score_samples(samples[:-1], samples[-1])
    return {name: found[name] for name in scores}
