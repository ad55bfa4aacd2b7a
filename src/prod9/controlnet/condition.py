"""The condition of control networks: a segmentation, source images, a label, or several of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from prod9.autoencoder.checks import require_below
from prod9.conditions import MaskedCondition
from prod9.types import Segmentation

NUM_BITS = 8
"""Planes of a class number in MAISI's binary form."""


@dataclass(frozen=True)
class ControlCondition(MaskedCondition):
    """A batch of control conditions; None for what is not given, but one of them is needed.

    seg: integer ``[B H W D]`` on the voxel grid, classes from 0 (background). label: int64 ``[B]``. images:
    float32 ``[B N H W D]`` in [0, 1], one channel per source modality, all 0 where a source is missing. origin: float32
    ``[B Z h w d]``, the latent at which a flow starts instead of at noise.
    """

    seg: Tensor | None = None
    label: Tensor | None = None
    images: Tensor | None = None
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        if self.seg is None and self.label is None and self.images is None:
            raise ValueError("control: expected seg, images or label, got none of them; pass at least one")


def one_hot_planes(seg: Integer[Tensor, "B H W D"], num_classes: int) -> Segmentation:
    """Return one float plane per class, background first, since class numbers have no order.

    Where nothing is known, all planes are 0, which differs from background everywhere.
    """
    require_below(seg, num_classes, "classes")
    classes = torch.arange(num_classes, device=seg.device, dtype=seg.dtype).view(1, -1, 1, 1, 1)
    return (seg[:, None] == classes).float()


def bit_planes(seg: Integer[Tensor, "B H W D"], num_classes: int) -> Float[Tensor, "B 8 H W D"]:
    """Return the eight binary digits of the class numbers, lowest first, the input of MAISI's control networks."""
    require_below(seg, num_classes, "classes")
    digits = torch.arange(NUM_BITS, device=seg.device).view(1, -1, 1, 1, 1)
    return ((seg.long()[:, None] >> digits) & 1).float()
