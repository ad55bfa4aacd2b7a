"""Stage-2 training of MAISI: move latents towards noise, predict the velocity, compare."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prod9.conditions import hide_covariates
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF, noise_like
from prod9.training.algorithms.base import AbstractAlgorithm, Losses
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Latent, Time

DISTANCES = {"l2": F.mse_loss, "l1": F.l1_loss}
_NEAR_DATA, _NEAR_NOISE = 0.2, 0.8


@runtime_checkable
class VelocityNetwork(Protocol):
    """A network that predicts velocities, such as DiffusionModelRF."""

    def predict(self, x_t: Latent, timesteps: Time, condition: FlowCondition) -> Latent:
        """Return the velocity at ``x_t``; ``timesteps`` are the scheduler's ``network_time``."""
        ...


@dataclass(kw_only=True, eq=False)
class DiffusionTrainer(AbstractAlgorithm):
    """Losses and metrics of a rectified flow; steps no optimizer and owns no network.

    Latents come scaled to a deviation of 1.

    Attributes:
        network: predicts velocities.
        scheduler: corrupts latents.
        distance: ``l2`` or ``l1`` between predicted and true velocity.
        condition_dropout: share of samples whose label is hidden, for guidance.
        covariate_dropout: share of the covariates, each by itself, that are hidden where a condition has them.
    """

    network: VelocityNetwork
    scheduler: RectifiedFlowSchedulerRF
    distance: str = "l2"
    condition_dropout: float = 0.1
    covariate_dropout: float = 0.3

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(
                f"distance: expected one of {', '.join(DISTANCES)}, got {self.distance!r}; use one of these."
            )

    def compute_losses(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Losses:
        """Return ``total`` and ``velocity``, means over the latent values of the batch."""
        if self.condition_dropout > 0:
            draws = torch.rand(len(x_0), generator=generator, device=generator.device)
            condition = condition.drop((draws < self.condition_dropout).to(x_0.device))
        condition = hide_covariates(condition, self.covariate_dropout, generator)
        t = self.scheduler.sample_times(x_0.shape, generator)
        loss = self._loss_at(t, x_0, condition, generator)
        return {"total": loss, "velocity": loss.detach()}

    @torch.no_grad()
    def tally(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Tally:
        """Count ``loss`` at random times, and ``loss_near_data`` and ``loss_near_noise`` at 0.2 and 0.8.

        Means over the samples of the set. Put the network into evaluation mode first.
        """
        random = self.scheduler.sample_times(x_0.shape, generator)
        fixed = {"loss_near_data": _NEAR_DATA, "loss_near_noise": _NEAR_NOISE}
        times = {"loss": random, **{name: torch.full_like(random, t) for name, t in fixed.items()}}
        samples = x_0.new_tensor(float(len(x_0)))
        return Tally(
            {name: mean_of(self._loss_at(t, x_0, condition, generator), samples) for name, t in times.items()}
        )

    def _loss_at(
        self, t: Time, x_0: Latent, condition: FlowCondition, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        noise = noise_like(x_0, generator)
        sample = self.scheduler.corrupt(x_0, noise, t)
        predicted = self.network.predict(sample.x_t, self.scheduler.network_time(t), condition)
        return DISTANCES[self.distance](predicted.float(), sample.velocity.float())
