"""What the training algorithms share: pure PyTorch logic between networks and the code that runs them.

An algorithm holds references to networks, computes losses and metrics, and steps an optimizer that it is
given. It never logs, moves devices, touches files, reads configs or counts steps: ``step`` is an argument,
and so is every source of randomness. For an optimizer it only differentiates through ``Backward``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prod9.training.algorithms.tally import Tally
from prod9.types import AutoencoderOutput

Losses = dict[str, Float[Tensor, ""]]
"""Scalars by name; ``total`` is what to differentiate, the rest carries no gradient."""

Backward = Callable[[Tensor], Any]
"""Adapters pass ``self.manual_backward``: a bare ``loss.backward()`` under DDP leaves the ranks with
different weights, and no error."""


class AbstractAlgorithm(ABC):
    """Losses and metrics of a stage; owns no network and steps no optimizer but one that it is given."""

    @abstractmethod
    def tally(self, *batch: Any, **how: Any) -> Tally:
        """Return what :meth:`summarise` needs of a held-out batch; tallies of batches, also of other ranks, add up."""

    def summarise(self, tally: Tally) -> Losses:
        """Return the scores of the set that ``tally`` is of."""
        return tally.averages()

    def compute_metrics(self, *batch: Any, **how: Any) -> Losses:
        """Return the scores of one batch by itself; arguments as for :meth:`tally`."""
        return self.summarise(self.tally(*batch, **how))


@runtime_checkable
class Autoencoder(Protocol):
    """A module that maps ``[B C H W D]`` to AutoencoderOutput."""

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where the adaptive weight compares gradients."""
        ...

    def __call__(self, x: Tensor, **draws: torch.Generator | None) -> AutoencoderOutput:
        """Reconstruct ``x``; those that draw their latent take ``generator``."""
        ...

    def eval(self) -> Any:
        """Switch to evaluation mode, as every nn.Module does."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over the network and its submodules, as every nn.Module does."""
        ...


@runtime_checkable
class TokenAutoencoder(Autoencoder, Protocol):
    """An autoencoder with a discrete latent of ``levels`` per channel."""

    levels: Sequence[int]
    vocab_size: int


@runtime_checkable
class Droppable(Protocol):
    """A batch of conditions."""

    def drop(self, where: Tensor) -> Any:
        """Return the batch without the conditions of the samples of bool ``where [B]``."""
        ...


def frozen_call(network: nn.Module, x: Tensor) -> Any:
    """Call ``network`` so that gradients reach ``x`` but never its parameters.

    The network itself is not changed, so a failure leaves nothing to undo.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return torch.func.functional_call(network, parameters, (x,))


def weighted_mean(values: Float[Tensor, " R"], weights: Float[Tensor, " R"] | None) -> Float[Tensor, ""]:
    """Return the mean of ``values``, weighted where ``weights`` are given."""
    if weights is None:
        return values.mean()
    # Every hidden token may be background and weigh nothing: the loss is then 0, not NaN.
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)
