"""StageLightning: the adapter of every stage with one network."""

import torch
from torch import Tensor

from prod9.training.lightning.base import AbstractLightning, AnyRecipe, Batch


class StageLightning(AbstractLightning[AnyRecipe]):
    """Drives a recipe with one optimizer."""

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the network on the losses of the recipe."""
        return self.step_on(self.recipe.losses(batch, step=self.step, generator=generator))
