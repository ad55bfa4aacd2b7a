"""GANLightning: the adapter of an autoencoder against a discriminator: two optimizers take turns."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from prod9.training.batches import VolumeBatch
from prod9.training.lightning.base import AbstractLightning, Batch, NonFiniteError
from prod9.training.recipes.autoencoders import AbstractGANRecipe


class GANLightning(AbstractLightning):
    """Drives a recipe of stage 1.

    The discriminator's optimizer exists from the start: a checkpoint from before its first step can be
    resumed after it.
    """

    recipe: AbstractGANRecipe

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
        values = self.step_on(losses)
        if len(optimizers) > 1:
            critic = self.recipe.algorithm.update_discriminator(
                x,
                output.reconstruction,
                cast(Optimizer, optimizers[1]),
                step=self.step,
                backward=self.manual_backward,
                clip=self.clip_or_raise,
            )
            # Or they would wait, filled, through the next generator step.
            optimizers[1].zero_grad(set_to_none=True)
            values |= {f"discriminator_{name}": value for name, value in critic.items()}
        return values
