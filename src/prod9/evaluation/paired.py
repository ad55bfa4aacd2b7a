"""Scores of a volume against the one it should equal, inside the brain.

Most of a skull-stripped volume is background, where any model is right: whole-volume scores flatter.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Integer
from torch import Tensor

from prod9.evaluation.regions import find_regions
from prod9.training.metrics import foreground, mean_absolute_error, ms_ssim3d, psnr, ssim3d
from prod9.types import Volume

OURS: Mapping[str, Callable[..., Tensor]] = {
    "psnr": psnr,
    "ssim": ssim3d,
    "ms_ssim": ms_ssim3d,
    "mae": mean_absolute_error,
}
BRASYN: Mapping[str, Callable[..., Tensor]] = {"psnr_brasyn": psnr, "ssim_brasyn": ssim3d}
BETTER = {"mae": "lower", "lpips": "lower"}
"""Which way is good, where it isn't up."""

Perceptual = Callable[[Volume, Volume], Tensor]
"""(made, target) → one distance."""


def psnr_brain(pred: Volume, target: Volume) -> Tensor:
    """Return PSNR in dB of each volume over the brain of ``target``; intensities in [0, 1]."""
    return psnr(pred, target, mask=foreground(target))


def ssim_brain(pred: Volume, target: Volume) -> Tensor:
    """Return 3D SSIM of each volume over windows centred in the brain of ``target``."""
    return ssim3d(pred, target, mask=foreground(target))


def paired_scores(pred: Volume, target: Volume) -> dict[str, float]:
    """Return means over volumes: psnr, ssim, mae over everything, psnr_brain, ssim_brain, mae_brain inside.

    A volume without a brain (all zero) counts for the first three only.
    """
    error = (pred - target).abs()
    brain = foreground(target)
    inside = (error * brain).flatten(1).sum(1) / brain.flatten(1).sum(1)
    return {
        "psnr": psnr(pred, target).mean().item(),
        "ssim": ssim3d(pred, target).mean().item(),
        "mae": error.mean().item(),
        "psnr_brain": torch.nanmean(psnr_brain(pred, target)).item(),
        "ssim_brain": torch.nanmean(ssim_brain(pred, target)).item(),
        "mae_brain": torch.nanmean(inside).item(),
    }


def regional_scores(
    pred: Volume,
    target: Volume,
    seg: Integer[Tensor, "1 1 H W D"] | None,
    *,
    perceptual: Perceptual | None = None,
) -> dict[str, dict[str, float]]:
    """Return region → metric → score of one volume ``[1 1 H W D]``, intensities as in the files.

    Both volumes are scaled by the target alone, so that a wrong brightness counts, and the data range is 1. Ours:
    the target's brain, from its least value to its 99.5th percentile, becomes [0, 1]. ``…_brasyn``: as the BraTS
    synthesis challenges score, whose percentiles, 0.5 and 99.5, are of the whole target with its background.
    ``lpips``, where there is a network: outside the region both are set to 0. NaN in an empty region, PSNR of
    equal volumes is 100 dB. The brain is where the target is not exactly 0.
    """
    regions = find_regions((target != 0).float(), seg)
    ours = scale_by_target(pred, target, target[target != 0], (0.0, 0.995))
    theirs = scale_by_target(pred, target, target.flatten(), (0.005, 0.995))
    scores: dict[str, dict[str, float]] = {}
    for region, mask in regions.items():
        # Of whole volumes there is nothing to leave out: the scores as every library has them.
        where = None if region == "whole" else mask
        row = {name: score(*ours, mask=where).item() for name, score in OURS.items()}
        row |= {name: score(*theirs, mask=where).item() for name, score in BRASYN.items()}
        if perceptual is not None:
            inside = [volume * mask for volume in ours]
            row["lpips"] = perceptual(*inside).item() if mask.any() else float("nan")
        scores[region] = row
    return scores


def scale_by_target(
    pred: Volume, target: Volume, values: Tensor, quantiles: tuple[float, float]
) -> tuple[Volume, Volume]:
    """Return both volumes with the ``quantiles`` of ``values`` brought to 0 and 1, clipped.

    values: those of the target that count. Where they are all equal, only what exceeds them is 1.
    """
    # torch.quantile refuses more than 2²⁴ values.
    ordered = values.flatten().double().sort().values if values.numel() else values.new_zeros(1).double()
    low, high = (ordered[round(q * (len(ordered) - 1))].item() for q in quantiles)
    span = max(high - low, 1e-12)
    made, wanted = (((volume - low) / span).clamp(0.0, 1.0) for volume in (pred, target))
    return made, wanted
