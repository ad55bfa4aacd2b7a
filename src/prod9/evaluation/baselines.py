"""Baselines of translation: another scan of the same head with a matched histogram, and linear regression.

Both are fitted on the training patients, like the model, and cost almost nothing. Volumes are in [0, 1] with a
background of exactly 0; sources have the same order of modalities in training and afterwards.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.measures.metrics import fit_intensities, foreground, psnr
from prod9.types import Volume

_NUM_QUANTILES = 256

Sources = Float[Tensor, "N S H W D"]


def match_histogram(volumes: Volume, quantiles: Float[Tensor, " Q"]) -> Volume:
    """Give each foreground voxel the value of the same rank among ``quantiles``: values at equally spaced ranks.

    Equal intensities stay equal, and the background stays 0.
    """
    return torch.stack([_match_one(volume, quantiles) for volume in volumes])


def mean_quantiles(volumes: Volume) -> Float[Tensor, " Q"]:
    """Return the foreground quantiles at equally spaced ranks, averaged over volumes."""
    levels = torch.linspace(0, 1, _NUM_QUANTILES, dtype=torch.float64)
    rows = []
    for values in (volume[volume > 0] for volume in volumes if (volume > 0).any()):
        # torch.quantile refuses more than 2²⁴ values.
        ordered = values.double().sort().values
        place = levels * (len(ordered) - 1)
        left = place.floor().long().clamp(max=max(len(ordered) - 2, 0))
        right = (left + 1).clamp(max=len(ordered) - 1)
        rows.append(ordered[left].lerp(ordered[right], place - left))
    return torch.stack(rows).mean(0).float()


@dataclass(frozen=True)
class CopyBaseline:
    """The best single source, with its histogram matched to that of the training targets.

    ``source`` is the place among the sources of the one that was closest on the training patients after an affine fit.
    """

    source: int
    quantiles: Tensor

    def __call__(self, sources: Sources) -> Volume:
        """Return ``[N 1 H W D]``."""
        return match_histogram(sources[:, self.source : self.source + 1], self.quantiles)


def fit_copy(sources: Sources, targets: Volume) -> CopyBaseline:
    """Choose the source and the histogram on training patients."""
    quantiles, brain = mean_quantiles(targets), foreground(targets)
    scores = []
    for s in range(sources.shape[1]):
        matched = match_histogram(sources[:, s : s + 1], quantiles)
        fitted = fit_intensities(matched, targets, mask=brain)
        scores.append(psnr(fitted, targets, mask=brain).nanmean())
    # A maximum over NaN is NaN, but a source without a score is not the best.
    return CopyBaseline(int(torch.stack(scores).nan_to_num(-torch.inf).argmax()), quantiles)


@dataclass(frozen=True)
class RegressionBaseline:
    """One linear map from the sources' intensities at a voxel to that of the target.

    ``weights`` has S + 1 entries, of which the last is the intercept.
    """

    weights: Tensor

    def __call__(self, sources: Sources) -> Volume:
        """Return ``[N 1 H W D]``, clipped to [0, 1], 0 where every source is background."""
        predicted = torch.einsum("nshwd,s->nhwd", sources, self.weights[:-1]) + self.weights[-1]
        head = (sources > 0).any(1)
        return torch.where(head, predicted.clamp(0.0, 1.0), 0.0)[:, None]


def fit_regression(sources: Sources, targets: Volume) -> RegressionBaseline:
    """Fit by least squares over all voxels of the heads of training patients."""
    size = sources.shape[1] + 1
    gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for volumes, target in zip(sources, targets, strict=True):
        head = (volumes > 0).any(0)
        rows = torch.cat([volumes[:, head], torch.ones(1, int(head.sum()))]).double()
        gram += rows @ rows.T
        moment += rows @ target[0, head].double()
    # Two sources may be copies of each other: then this driver takes the smallest of all solutions.
    return RegressionBaseline(torch.linalg.lstsq(gram, moment, driver="gelsd").solution.float())


def _match_one(volume: Tensor, quantiles: Tensor) -> Tensor:
    inside = volume > 0
    values = volume[inside]
    if not len(values):
        return volume
    ordered = values.sort().values
    # The middle of a run of equal values, so that they stay equal.
    below, above = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    rank = (below + above - 1) / 2 / max(len(values) - 1, 1) * (len(quantiles) - 1)
    left = rank.floor().long().clamp(max=len(quantiles) - 2)
    matched = quantiles[left].lerp(quantiles[left + 1], (rank - left).to(quantiles.dtype))
    result = torch.zeros_like(volume)
    result[inside] = matched.to(volume.dtype)
    return result
