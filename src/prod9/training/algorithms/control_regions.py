"""Where in a latent the classes of a segmentation are, and what positions weigh in a loss for it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from prod9.controlnet.condition import ControlCondition


def region_of(
    control: ControlCondition, grid: Sequence[int], *, margin: int
) -> Bool[Tensor, "B h w d"] | None:
    """Return True for positions of ``grid`` whose patch, or one within ``margin`` positions, holds a segmented class.

    None for a control without segmentation; False everywhere in samples whose control is dropped.
    """
    if control.seg is None:
        return None
    return segmented_positions(control.seg, grid, margin=margin) & ~control.is_dropped.view(-1, 1, 1, 1)


def segmented_positions(
    seg: Integer[Tensor, "B H W D"], grid: Sequence[int], *, margin: int
) -> Bool[Tensor, "B h w d"]:
    """Return True for positions of ``grid`` whose patch, or one within ``margin`` positions, holds any class."""
    factors = [side // n for side, n in zip(seg.shape[1:], grid, strict=True)]
    inside = F.max_pool3d((seg > 0).float()[:, None], factors)
    if margin:
        inside = F.max_pool3d(inside, 2 * margin + 1, stride=1, padding=margin)
    return inside[:, 0] > 0


def position_weights(
    target: Tensor,
    *,
    foreground: Bool[Tensor, "B h w d"] | None,
    background_weight: float,
    region: Bool[Tensor, "B h w d"] | None,
    region_weight: float,
) -> Float[Tensor, "B h w d"]:
    """Return what each position of ``target`` (``[B ... h w d]``) weighs: background, brain, or in ``region``.

    Lesions are rare; with equal weights a network learns everything else first.
    """
    weights = torch.ones(len(target), *target.shape[-3:], device=target.device)
    if foreground is not None:
        weights = weights.masked_fill(~foreground, background_weight)
    return weights if region is None else weights.masked_fill(region, region_weight)
