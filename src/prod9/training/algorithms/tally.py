"""Sums over a set that add up over batches and ranks, and the scores that follow from them.

The mean of a score over batches is the score of the set only where the score is a mean over equally many things in each
batch. Shares of tokens, codebook use, deviations and accuracies are not.
"""

from dataclasses import dataclass, field
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """Sums over a part of a set; the tally of the whole is their sum.

    means: by name ``[2]``, Σ weight · value and Σ weight. counts: by name anything else that adds up, such as a
    histogram. Both in float64 where the device has it.
    """

    means: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(_added(self.means, other.means), _added(self.counts, other.counts))

    def to(self, device: torch.device | str) -> "Tally":
        """Return the tally on ``device``."""
        moved = (
            {name: value.to(device) for name, value in part.items()} for part in (self.means, self.counts)
        )
        return Tally(*moved)

    def averages(self) -> dict[str, Tensor]:
        """Return the weighted means, float32, without those whose weights are all 0."""
        if not self.means:
            return {}
        sums, weights = torch.stack(list(self.means.values())).unbind(1)
        values = (sums / weights).float()
        # One wait for the device, at the end of a set, for the names.
        there = (weights > 0).tolist()
        return {name: value for name, value, known in zip(self.means, values, there, strict=True) if known}


def mean_of(values: Float[Tensor, "..."], weights: Tensor | None = None) -> Float[Tensor, "2"]:
    """Return Σ weight · value and Σ weight, the weights 1 where none are given.

    Values of weight 0 may be anything, also NaN; a NaN of another weight makes the mean NaN.
    """
    values = exact(values)
    if weights is None:
        return torch.stack([values.sum(), values.new_tensor(values.numel())])
    weights = exact(weights)
    return torch.stack([torch.where(weights != 0, weights * values, 0.0).sum(), weights.sum()])


def exact(values: Tensor) -> Tensor:
    """Return ``values`` in float64, or in float32 on Apple's GPUs, which have no float64."""
    return values.float() if values.device.type == "mps" else values.double()


def _added(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    names = dict.fromkeys((*one, *other))
    return {name: reduce(torch.add, [part[name] for part in (one, other) if name in part]) for name in names}
