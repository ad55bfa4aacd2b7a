"""The condition of a diffusion network."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prod9.conditions import Condition

UNKNOWN = 0
"""MAISI's class "not known", which also stands for "no condition" in guidance."""
HEAD = 0
"""Index of head and neck among the body regions."""


@dataclass(frozen=True)
class FlowCondition(Condition):
    """A batch of conditions.

    label: int64 ``[B]``, the class to generate, 0 where it is unknown. spacing: float32 ``[B 3]``, sides of a voxel of
    the image in mm. top_region, bottom_region: float32 ``[B 4]``, one-hot, the body regions
    (head and neck, chest, abdomen, pelvis) of the first and last slice. steps: int64 ``[B]``, the number of steps that
    carry a sample from noise to data, which samplers fill in. covariates: float32 ``[B K C]``, see
    :mod:`prod9.data.covariates`. None for what a network does not take.
    """

    label: Tensor
    spacing: Tensor | None = None
    top_region: Tensor | None = None
    bottom_region: Tensor | None = None
    steps: Tensor | None = None
    covariates: Tensor | None = None

    @classmethod
    def of_heads(cls, label: Tensor, spacing: Tensor) -> "FlowCondition":
        """Return the condition of images that show only a head."""
        region = torch.zeros(len(label), 4, device=label.device)
        region[:, HEAD] = 1.0
        return cls(label, spacing.to(torch.float32), region, region)

    def in_steps(self, steps: Tensor | int) -> "FlowCondition":
        """Return the batch for sampling in ``steps``: one number for all samples, or one for each, ``[B]``."""
        if isinstance(steps, int):
            steps = torch.full((len(self),), steps, device=self.device)
        return replace(self, steps=steps.expand(len(self)))

    def drop(self, where: Tensor) -> "FlowCondition":
        """Return the batch with labels and covariates of bool ``where [B]`` unknown; the geometry stays known."""
        known = self.covariates
        known = None if known is None else known.masked_fill(where[:, None, None], 0.0)
        return replace(self, label=self.label.masked_fill(where, UNKNOWN), covariates=known)
