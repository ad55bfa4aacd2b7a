"""What every batch of conditions can do, whatever a network takes: move, join, be cut, be dropped."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prod9.host_copies import computed, placed


@dataclass(frozen=True)
class Condition(ABC):
    """A batch of conditions. Its fields are tensors whose first axis is the sample; None stands for not given."""

    @property
    def given(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def _first(self) -> Tensor:
        return next(iter(self.given.values()))

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, samples: slice | Tensor) -> Self:
        return replace(self, **{name: value[samples] for name, value in self.given.items()})

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self._first.device

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in self.given.items()})

    def cat(self, other: Self) -> Self:
        """Return one batch with the samples of ``other`` after these; ValueError where only one has a field."""
        one, two = self._matched(other).given, other._matched(self).given
        if one.keys() != two.keys():
            names = ", ".join(name for name in one | two if name not in one or name not in two)
            raise ValueError(f"{names}: expected in both conditions or in neither, got one; give it to both")
        return replace(self, **{name: torch.cat([one[name], two[name]]) for name in one})

    def _matched(self, other: Any) -> Self:
        """Return the batch with the fields and sides that it needs to be joined with ``other``."""
        return self

    @abstractmethod
    def drop(self, where: Tensor) -> Self:
        """Return the batch with the samples of bool ``where [B]`` made unconditional."""

    def unconditional(self) -> Self:
        """Return the batch with every condition dropped."""
        return self.drop(torch.ones(len(self), dtype=torch.bool, device=self.device))


@dataclass(frozen=True)
class MaskedCondition(Condition):
    """Conditions that mark what is dropped and keep what they hold.

    dropped: bool ``[B]``, True where the sample is generated without any condition; None for nowhere.
    """

    dropped: Tensor | None = field(default=None, kw_only=True)

    @property
    def is_dropped(self) -> Tensor:
        """``dropped`` as a bool tensor ``[B]``."""
        if self.dropped is not None:
            return self.dropped
        return placed(torch.zeros(len(self), dtype=torch.bool), self.device)

    def drop(self, where: Tensor) -> Self:
        """Return the batch with the samples of bool ``where [B]`` marked as dropped."""
        return replace(self, dropped=computed(torch.logical_or, self.is_dropped, where))

    def _matched(self, other: Any) -> Self:
        return replace(self, dropped=self.is_dropped)


class CovariateEmbedding(nn.Module):
    """Embeds covariates ``[B K C]`` (see :mod:`prod9.data.covariates`) as one vector a sample.

    covariates: K and C. embed_dim: width E. A covariate that is not known is a row of zeros, and so are all of them
    where a condition has none.
    """

    def __init__(self, *, covariates: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        self.shape = tuple(covariates)
        self.hidden = nn.Linear(self.shape[0] * self.shape[1], embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)

    def forward(self, covariates: Tensor | None, count: int) -> Float[Tensor, "B E"]:
        """Return the embeddings of ``count`` samples; ValueError for covariates of another shape."""
        if covariates is None:
            covariates = self.hidden.weight.new_zeros(count, *self.shape)
        if tuple(covariates.shape[1:]) != self.shape:
            raise ValueError(
                f"covariates: expected {self.shape} of each sample, got {tuple(covariates.shape[1:])}; use the "
                "table that the network was trained with"
            )
        flat = covariates.flatten(1).to(self.hidden.weight.dtype)
        return self.output(torch.nn.functional.silu(self.hidden(flat)))


def with_covariates(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights ``state`` with an embedding of covariates where ``network`` has one that ``state`` lacks.

    It is that of ``network`` with an output of 0, so at first the network computes what the one without it computes.
    """
    found = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, CovariateEmbedding) and not any(key.startswith(f"{name}.") for key in state):
            for key, value in module.state_dict().items():
                is_output = key.startswith("output.")
                found[f"{name}.{key}"] = torch.zeros_like(value) if is_output else value.clone()
    return found


C = TypeVar("C")


def hide_covariates(condition: C, share: float, generator: torch.Generator) -> C:
    """Return ``condition`` with each covariate of each sample made unknown with probability ``share``.

    Nothing is drawn for conditions without covariates.
    """
    covariates = getattr(condition, "covariates", None)
    if covariates is None or share <= 0:
        return condition
    draws = torch.rand(covariates.shape[:2], generator=generator, device=generator.device)
    hidden = (draws < share).to(covariates.device)[..., None]
    return replace(cast(Any, condition), covariates=covariates.masked_fill(hidden, 0.0))
