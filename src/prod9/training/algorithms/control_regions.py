"""Where in a latent the classes of a segmentation are, and what positions weigh in a loss for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from prod9.controlnet.condition import ControlCondition
from prod9.training.algorithms.base import AbstractAlgorithm


def region_of(
    control: ControlCondition, grid: Sequence[int], *, margin: int
) -> Bool[Tensor, "B h w d"] | None:
    """Return True for positions of ``grid`` whose patch, or one within ``margin`` positions, holds a segmented class.

    None for a control without segmentation; False everywhere in samples whose control is dropped.
    """
    if control.seg is None:
        return None
    inside = _largest_nearby((control.seg > 0).float(), grid, margin=margin) > 0
    return inside & ~control.is_dropped.view(-1, 1, 1, 1)


def _largest_nearby(
    voxels: Float[Tensor, "B H W D"], grid: Sequence[int], *, margin: int
) -> Float[Tensor, "B h w d"]:
    """Return the largest value in the patch of each position of ``grid`` and of those within ``margin`` positions."""
    factors = [side // n for side, n in zip(voxels.shape[1:], grid, strict=True)]
    largest = F.max_pool3d(voxels[:, None], factors)
    if margin:
        largest = F.max_pool3d(largest, 2 * margin + 1, stride=1, padding=margin)
    return largest[:, 0]


@dataclass(kw_only=True, eq=False)
class AbstractWeightedAlgorithm(AbstractAlgorithm):
    """An algorithm whose loss weighs the positions of a latent, or its tokens, by what is in their patch.

    Lesions are rare: with equal weights a network learns everything else first, and of a lesion its largest class.

    Attributes:
        background_weight: of positions outside of the head.
        region_weight: of positions in or within ``region_margin`` positions of a segmented class.
        region_margin: in positions.
        class_weights: factors of ``region_weight`` for the classes 1, 2, …; 1 for classes beyond the last. Near several
            classes the largest counts.
    """

    background_weight: float = 0.25
    region_weight: float = 1.0
    region_margin: int = 1
    class_weights: Sequence[float] = ()

    def weights_of(
        self,
        target: Tensor,
        *,
        foreground: Bool[Tensor, "B h w d"] | None,
        seg: Integer[Tensor, "B H W D"] | None,
        is_dropped: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B h w d"]:
        """Return what each position of ``target`` weighs.

        Args:
            target: ``[B ... h w d]``.
            foreground: True where a position's patch holds any of the head; None for everywhere.
            seg: segmentation of the volumes; None for no region.
            is_dropped: samples that have no region, whatever their segmentation.
        """
        grid = target.shape[-3:]
        weights = torch.ones(len(target), *grid, device=target.device)
        if foreground is not None:
            weights = weights.masked_fill(~foreground, self.background_weight)
        if seg is None:
            return weights
        voxels = (seg > 0).float()
        for number, factor in enumerate(self.class_weights, start=1):
            voxels = torch.where(seg == number, factor, voxels)
        inside = self.region_weight * _largest_nearby(voxels, grid, margin=self.region_margin)
        if is_dropped is not None:
            inside = inside.masked_fill(is_dropped.view(-1, 1, 1, 1), 0)
        return torch.where(inside > 0, inside, weights)
