"""GANLightning: the adapter of an autoencoder against a discriminator: two optimizers take turns."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from prod9.training.batches import VolumeBatch
from prod9.training.lightning.base import AbstractLightning, Batch, NonFiniteError, gradient_norm
from prod9.training.recipes.autoencoders import AbstractGANRecipe


class GANLightning(AbstractLightning[AbstractGANRecipe]):
    """Drives a recipe of stage 1.

    The discriminator's optimizer exists from the start: a checkpoint from before its first step can be
    resumed after it.
    """

    _waiting: Tensor | None = None
    """The autoencoder's loss, from its backward pass to its step."""

    def first_batch(self, x: Tensor) -> None:
        """Bring the latent into its range on the first batch of a fresh run; rank 0 decides for all."""
        autoencoder = self.recipe.autoencoder
        autoencoder.calibrate(x)
        if self.trainer.world_size > 1:
            # Each rank has calibrated on a batch of its own.
            for parameter in autoencoder.parameters():
                dist.broadcast(parameter.data, src=0)

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the autoencoder, then the discriminator on the same reconstructions."""
        x = self.recipe.volumes(cast(VolumeBatch, batch))
        if self.fresh:
            if not x.isfinite().all():
                # What is fitted to it would stay NaN for ever.
                raise NonFiniteError("the first batch holds NaN or infinity")
            self.first_batch(x)
        optimizers = self.optimizer_list()
        losses, output = self.recipe.reconstruct(x, step=self.step, generator=generator)
        self.manual_backward(losses["total"])
        self._waiting = losses["total"]
        values = {name: value.detach() for name, value in losses.items()}
        if len(optimizers) > 1:
            critic = self.recipe.algorithm.update_discriminator(
                x,
                output.reconstruction,
                cast(Optimizer, optimizers[1]),
                step=self.step,
                backward=self.manual_backward,
                clip=self._judge_both,
            )
            # Or they would wait, filled, through the next generator step.
            optimizers[1].zero_grad(set_to_none=True)
            values |= {f"discriminator_{name}": value for name, value in critic.items()}
        if self._waiting is not None:  # there was no discriminator to look at in the same go
            norm, finite = gradient_norm(optimizers[0], self._waiting)
            self._step_generator(norm, bool(finite))
        return values

    def _judge_both(self, critic: Optimizer) -> None:
        """Step the autoencoder and clip the ``critic``: one wait for the device tells whether both are finite."""
        norm, finite = gradient_norm(self.optimizer_list()[0], self._waiting)
        critic_norm, critic_finite = gradient_norm(critic, None)
        both = torch.stack([finite, critic_finite]).tolist()
        try:
            self._step_generator(norm, both[0])
        except NonFiniteError:
            critic.zero_grad(set_to_none=True)
            raise
        self.clip_or_drop(critic, critic_norm, both[1])

    def _step_generator(self, norm: Tensor, finite: bool) -> None:
        optimizer, self._waiting = self.optimizer_list()[0], None
        self.clip_or_drop(optimizer, norm, finite)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
