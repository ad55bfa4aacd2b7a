"""What a control network is told: a segmentation, source images, a label, or several of them."""

from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from prod9.types import Segmentation

NUM_BITS = 8
"""Planes of a class number in MAISI's binary form."""


@dataclass(frozen=True)
class ControlCondition:
    """A batch of control conditions.

    seg: integer ``[B H W D]`` on the voxel grid, classes from 0 (background), or None. label: int64 ``[B]``,
    a class label, or None. dropped: bool ``[B]``, True where nothing is known; default: nowhere. images:
    float32 ``[B N H W D]`` in [0, 1], a slot a source modality, 0 throughout where one is missing, or None.
    """

    seg: Tensor | None = None
    label: Tensor | None = None
    dropped: Tensor | None = None
    images: Tensor | None = None

    def __post_init__(self) -> None:
        if self.seg is None and self.label is None and self.images is None:
            raise ValueError("Expected a segmentation, images or a label to control with, got none of them.")

    def __len__(self) -> int:
        return len(self._any)

    @property
    def _any(self) -> Tensor:
        given = (value for value in (self.seg, self.label, self.images) if value is not None)
        return cast(Tensor, next(given))

    @property
    def is_dropped(self) -> Tensor:
        """``dropped`` as a bool tensor ``[B]``."""
        if self.dropped is not None:
            return self.dropped
        return torch.zeros(len(self), dtype=torch.bool, device=self._any.device)

    def drop(self, where: Tensor) -> "ControlCondition":
        """Return the batch with the control of the samples of bool ``where [B]`` taken away."""
        return replace(self, dropped=self.is_dropped | where)

    def to(self, device: torch.device | str) -> "ControlCondition":
        """Return the batch on ``device``."""
        given = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **given)


def one_hot_planes(seg: Integer[Tensor, "B H W D"], num_classes: int) -> Segmentation:
    """Return one float plane a class, background first; a class number is never fed to a convolution.

    "Background everywhere" and "nothing known" thus differ: the latter is 0 in every plane.
    """
    require_below(seg, num_classes, "classes")
    classes = torch.arange(num_classes, device=seg.device, dtype=seg.dtype).view(1, -1, 1, 1, 1)
    return (seg[:, None] == classes).float()


def bit_planes(seg: Integer[Tensor, "B H W D"], num_classes: int) -> Float[Tensor, "B 8 H W D"]:
    """Return the eight binary digits of the class numbers, lowest first, as MAISI's control networks see them."""
    require_below(seg, num_classes, "classes")
    digits = torch.arange(NUM_BITS, device=seg.device).view(1, -1, 1, 1, 1)
    return ((seg.long()[:, None] >> digits) & 1).float()


def require_below(values: Tensor, count: int, what: str) -> None:
    """Refuse numbers outside 0 to ``count - 1``; ``what`` names them. On CUDA without waiting for the result."""
    # ``count`` itself may not fit the type: 256 is 0 as uint8.
    known = ((values >= 0) & (values <= count - 1)).all()
    if values.device.type == "cuda":
        torch._assert_async(known)  # waiting for the result here would stall every step
    elif values.device.type == "cpu" and not known:
        raise ValueError(
            f"Expected {what} from 0 to {count - 1}, got {values.unique().tolist()[:10]}; map them first, or "
            "train with more."
        )
