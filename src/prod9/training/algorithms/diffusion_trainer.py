"""Stage-2 training of MAISI: put latents somewhere between data and noise, predict the velocity, compare."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF, noise_like
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Latent, Time

DISTANCES = {"l2": F.mse_loss, "l1": F.l1_loss}
_NEAR_DATA, _NEAR_NOISE = 0.2, 0.8


@runtime_checkable
class VelocityNetwork(Protocol):
    """What predicts velocities, as DiffusionModelRF does."""

    def predict(self, x_t: Latent, timesteps: Time, condition: FlowCondition) -> Latent:
        """Return the velocity at ``x_t``; ``timesteps`` are the scheduler's ``network_time``."""
        ...


class DiffusionTrainer:
    """Losses and metrics of a rectified flow; steps no optimizer and owns no network.

    distance: ``l2`` or ``l1`` between predicted and true velocity. condition_dropout: share of samples whose
    label is unknown, for guidance. Latents come scaled to a deviation of 1.
    """

    def __init__(
        self,
        *,
        network: VelocityNetwork,
        scheduler: RectifiedFlowSchedulerRF,
        distance: str = "l2",
        condition_dropout: float = 0.1,
    ) -> None:
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}.")
        self.network = network
        self.scheduler = scheduler
        self.distance = distance
        self.condition_dropout = condition_dropout

    def compute_losses(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Losses:
        """Return ``total`` and ``velocity``, means over the latent values of the batch."""
        if self.condition_dropout > 0:
            draws = torch.rand(len(x_0), generator=generator, device=generator.device)
            condition = condition.drop((draws < self.condition_dropout).to(x_0.device))
        t = self.scheduler.sample_times(x_0.shape, generator)
        loss = self._loss_at(t, x_0, condition, generator)
        return {"total": loss, "velocity": loss.detach()}

    def compute_metrics(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Losses:
        """Return ``loss`` at random times, and ``loss_near_data`` and ``loss_near_noise`` at 0.2 and 0.8.

        Means over the samples of the set. Put the network into evaluation mode first.
        """
        return self.summarise(self.tally(x_0, condition, generator=generator))

    @torch.no_grad()
    def tally(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Tally:
        """Return what `summarise` needs of a batch; tallies of batches, also of other ranks, add up."""
        random = self.scheduler.sample_times(x_0.shape, generator)
        fixed = {"loss_near_data": _NEAR_DATA, "loss_near_noise": _NEAR_NOISE}
        times = {"loss": random, **{name: torch.full_like(random, t) for name, t in fixed.items()}}
        samples = x_0.new_tensor(float(len(x_0)))
        return Tally(
            {name: mean_of(self._loss_at(t, x_0, condition, generator), samples) for name, t in times.items()}
        )

    def summarise(self, tally: Tally) -> Losses:
        """Return the scores of the set that ``tally`` is of."""
        return tally.averages()

    def _loss_at(
        self, t: Time, x_0: Latent, condition: FlowCondition, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        noise = noise_like(x_0, generator)
        sample = self.scheduler.corrupt(x_0, noise, t)
        predicted = self.network.predict(sample.x_t, self.scheduler.network_time(t), condition)
        return DISTANCES[self.distance](predicted.float(), sample.velocity.float())
