"""DetailCondition: what a detail flow is told."""

from dataclasses import dataclass, replace
from typing import Self

from jaxtyping import Bool, Float
from torch import Tensor

from prod9.conditions import Condition
from prod9.types import Label


@dataclass(frozen=True)
class DetailCondition(Condition):
    """A batch of conditions.

    Attributes:
        soft: the volumes to sharpen, ``[B 1 H W D]`` in [0, 1].
        label: class of each volume.
        noise: the level of noise that is wanted, a standard deviation as :mod:`prod9.measures.noise` finds it.
        head: where the result may differ from 0, bool ``[B 1 H W D]``.
        sources: of a translation, channel k of class k, ``[B K H W D]`` in [0, 1]; None without sources.
        present: which sources are given, bool ``[B K]``; the others do not count.
    """

    soft: Float[Tensor, "B 1 H W D"]
    label: Label
    noise: Float[Tensor, " B"]
    head: Bool[Tensor, "B 1 H W D"]
    sources: Float[Tensor, "B K H W D"] | None = None
    present: Bool[Tensor, "B K"] | None = None

    def drop(self, where: Tensor) -> Self:
        """Return the batch without the sources of the samples of bool ``where [B]``."""
        if self.present is None:
            return self
        return replace(self, present=self.present & ~where[:, None])
