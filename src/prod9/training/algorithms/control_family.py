"""AbstractControlFamily: what a control network of one family is trained on, and for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from prod9.controlnet.condition import ControlCondition
from prod9.training.algorithms.base import Droppable

K = TypeVar("K", bound=Droppable)
"""The condition of the base."""
S = TypeVar("S")
"""One training step, as the family makes it."""


@dataclass(frozen=True)
class Measured:
    """What is compared, before it is averaged.

    rows: flattened indices into ``[B h w d]``. values: by (name, suffix), one number per row; the suffix is empty
    under control and ``_base`` without.
    """

    rows: Tensor
    values: dict[tuple[str, str], Tensor]


class AbstractControlFamily(ABC, Generic[K, S]):
    """Corrupts samples, predicts them under control, and compares.

    objective: the name of the loss.
    """

    objective: str

    @abstractmethod
    def step(
        self,
        target: Tensor,
        condition: K,
        control: ControlCondition,
        weights: Tensor,
        generator: torch.Generator,
    ) -> S:
        """Corrupt ``target``, and predict it.

        Args:
            target: tokens ``[B h w d]`` or latents ``[B Z h w d]``.
            condition: of the base.
            control: of the control network.
            weights: of the positions in the loss, ``[B h w d]``.
            generator: of all that is drawn.
        """

    @abstractmethod
    def loss(self, step: S) -> Tensor:
        """Return the objective."""

    @abstractmethod
    def anchor(self, step: S) -> Tensor:
        """Return the squared distance to the base where the control is dropped: there it has nothing to add."""

    @abstractmethod
    def measure(
        self, target: Tensor, condition: K, control: ControlCondition, generator: torch.Generator
    ) -> Measured:
        """Return what is measured of each position, with and without control.

        Args:
            target: tokens ``[B h w d]``, or latents ``[B Z h w d]``.
            condition: of the base.
            control: what steers.
            generator: draws times and noise.
        """

    def extra_terms(self, step: S, index: int) -> dict[str, tuple[float, Tensor]]:
        """Return weight and value of further terms of the loss by name; ``index``: training batches done."""
        del step, index
        return {}
