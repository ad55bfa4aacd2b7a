"""What a diffusion network is told about the latent it makes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNKNOWN = 0
"""MAISI's class of "not known", which also stands for "no condition" in guidance."""
HEAD = 0
"""Place of head and neck among the body regions."""


@dataclass(frozen=True)
class FlowCondition:
    """A batch of conditions.

    label: int64 ``[B]``, the class to generate, 0 where it is unknown. spacing: float32 ``[B 3]``, mm of a
    voxel of the image along each axis. top_region, bottom_region: float32 ``[B 4]``, one-hot, the body regions
    (head and neck, chest, abdomen, pelvis) of the first and last slice. None for what a network does not take.
    """

    label: Tensor
    spacing: Tensor | None = None
    top_region: Tensor | None = None
    bottom_region: Tensor | None = None

    @classmethod
    def of_heads(cls, label: Tensor, spacing: Tensor) -> "FlowCondition":
        """Return the condition of images that show a head and nothing below it."""
        region = torch.zeros(len(label), 4, device=label.device)
        region[:, HEAD] = 1.0
        return cls(label, spacing.to(torch.float32), region, region)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.label.device

    def drop(self, where: Tensor) -> "FlowCondition":
        """Return the batch with the labels of bool ``where [B]`` unknown; the geometry stays known."""
        return replace(self, label=self.label.masked_fill(where, UNKNOWN))

    def unconditional(self) -> "FlowCondition":
        """Return the batch with every label unknown."""
        return replace(self, label=torch.full_like(self.label, UNKNOWN))

    def cat(self, other: "FlowCondition") -> "FlowCondition":
        """Return one batch with the samples of ``other`` after these."""
        names = ("spacing", "top_region", "bottom_region")
        rest = {name: _cat(getattr(self, name), getattr(other, name), name) for name in names}
        return FlowCondition(label=torch.cat([self.label, other.label]), **rest)

    def to(self, device: torch.device | str) -> "FlowCondition":
        """Return the batch on ``device``."""
        given = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **given)


def _cat(one: Tensor | None, other: Tensor | None, name: str) -> Tensor | None:
    if one is None and other is None:
        return None
    if one is None or other is None:
        raise ValueError(f"Expected {name} in both conditions or in neither, got it in one; give it to both.")
    return torch.cat([one, other])
