"""Scores of a volume against its target, in the brain and in other regions.

Most of a skull-stripped volume is background, where every model is right: scores of whole volumes look too good.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Integer
from torch import Tensor

from prod9.evaluation.regions import brain_of, find_regions
from prod9.measures.metrics import PSNR_CAP, SIGMA, foreground, mean_absolute_error, psnr, ssim3d
from prod9.measures.ssim import Window, compare_regions, ssim_window
from prod9.types import Volume

BETTER = {"mae": "lower", "lpips": "lower"}
"""Metrics for which lower is better; for all others higher is."""

BOUNDS = {
    "psnr": (-math.inf, PSNR_CAP),
    "psnr_brasyn": (-math.inf, PSNR_CAP),
    "ssim": (-1.0, 1.0),
    "ssim_brasyn": (-1.0, 1.0),
    "ms_ssim": (0.0, 1.0),
    "mae": (0.0, 1.0),
    "lpips": (0.0, math.inf),
}
"""Lowest and highest possible value of each score."""

Perceptual = Callable[[Volume, Volume], Tensor]
"""(made, target) → one distance."""


def psnr_brain(pred: Volume, target: Volume) -> Tensor:
    """Return PSNR in dB of each volume over the brain of ``target``; intensities in [0, 1]."""
    return psnr(pred, target, mask=foreground(target))


def ssim_brain(pred: Volume, target: Volume) -> Tensor:
    """Return 3D SSIM of each volume over windows centred in the brain of ``target``."""
    return ssim3d(pred, target, mask=foreground(target))


def regional_scores(
    pred: Volume,
    target: Volume,
    seg: Integer[Tensor, "1 1 H W D"] | None,
    *,
    perceptual: Perceptual | None = None,
) -> dict[str, dict[str, float]]:
    """Return region → metric → score of one volume, with intensities as in the files.

    Both volumes are scaled by the target alone, so that a wrong brightness counts; the data range is then 1. Our scores
    bring the target's brain, from its lowest value to its 99.5th percentile, to [0, 1]. The scores ``…_brasyn`` follow
    the BraTS synthesis challenges, which take the percentiles 0.5 and 99.5 of the whole target with its background.
    Scores are NaN in an empty region; PSNR of equal volumes is 100 dB. The brain is all but the target's background.

    Args:
        pred: the volume ``[1 1 H W D]``.
        target: what it should equal.
        seg: labels of the target; None for no tumour.
        perceptual: also score ``lpips`` with this network; outside the region both volumes are set to 0.
    """
    brain = brain_of(target)
    regions = find_regions(brain.float(), seg)
    ours = scale_by_target(pred, target, target[brain], (0.0, 0.995))
    theirs = scale_by_target(pred, target, target.flatten(), (0.005, 0.995))
    # Without a mask, scores match other libraries.
    masks = [None if region == "whole" else mask for region, mask in regions.items()]
    window = Window(ssim_window(target.shape[2:]), SIGMA, 1.0)
    # The maps of SSIM take most of the time and are the same for all regions.
    alike = compare_regions(*ours, masks, window=window)
    alike_brasyn = compare_regions(*theirs, masks, window=window, multiscale=False)
    scores: dict[str, dict[str, float]] = {}
    for k, (region, where) in enumerate(zip(regions, masks, strict=True)):
        row = {
            "psnr": psnr(*ours, mask=where).item(),
            "ssim": alike[k].ssim.item(),
            "ms_ssim": alike[k].ms_ssim.item(),
            "mae": mean_absolute_error(*ours, mask=where).item(),
            "psnr_brasyn": psnr(*theirs, mask=where).item(),
            "ssim_brasyn": alike_brasyn[k].ssim.item(),
        }
        if perceptual is not None:
            mask = regions[region]
            inside = [volume * mask for volume in ours]
            row["lpips"] = perceptual(*inside).item() if mask.any() else float("nan")
        scores[region] = row
    return scores


def scale_by_target(
    pred: Volume, target: Volume, values: Tensor, quantiles: tuple[float, float]
) -> tuple[Volume, Volume]:
    """Return both volumes scaled so that the ``quantiles`` of ``values`` become 0 and 1, and clipped.

    Args:
        pred: the volume to score.
        target: what it should equal.
        values: those of the target that count. Where they are all equal, only higher ones become 1.
        quantiles: the lower and the upper one, in [0, 1].
    """
    plain = values.flatten().cpu().numpy() if values.numel() else np.zeros(1)
    ranks = [round(q * (len(plain) - 1)) for q in quantiles]
    # Only two ranks of nine million values are needed: partitioning takes a tenth of the time of sorting.
    low, high = np.partition(plain, sorted(set(ranks)))[ranks].tolist()
    span = max(high - low, 1e-12)
    made, wanted = (((volume - low) / span).clamp(0.0, 1.0) for volume in (pred, target))
    return made, wanted
