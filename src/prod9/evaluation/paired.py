"""Scores of a volume against the one it should equal, inside the brain.

Most of a skull-stripped volume is background, where any model is right: whole-volume scores flatter.
"""

import torch
from torch import Tensor

from prod9.training.metrics import foreground, psnr, ssim3d
from prod9.types import Volume


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
