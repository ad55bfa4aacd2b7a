"""Where in a latent the classes of a segmentation are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from prod9.controlnet.condition import ControlCondition


def region_of(
    control: ControlCondition, grid: Sequence[int], *, margin: int
) -> Bool[Tensor, "B h w d"] | None:
    """Return True for positions of ``grid`` whose patch, or one within ``margin`` positions, holds a segmented class.

    None for a control without segmentation; nowhere in samples of which nothing is known.
    """
    if control.seg is None:
        return None
    factors = [side // n for side, n in zip(control.seg.shape[1:], grid, strict=True)]
    inside = F.max_pool3d((control.seg > 0).float()[:, None], factors)
    if margin:
        inside = F.max_pool3d(inside, 2 * margin + 1, stride=1, padding=margin)
    return (inside[:, 0] > 0) & ~control.is_dropped.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Measured:
    """What is compared, before it is averaged.

    rows: flattened indices into ``[B h w d]``. values: by (name, suffix), one number a row; the suffix is empty
    under control and ``_base`` without.
    """

    rows: Tensor
    values: dict[tuple[str, str], Tensor]
