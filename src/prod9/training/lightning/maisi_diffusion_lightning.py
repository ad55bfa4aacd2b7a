"""MAISIDiffusionLightning: stage 2 of MAISI, a rectified flow over the latents of a trained autoencoder."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.flow import FlowRecipe


class MAISIDiffusionLightning(StageLightning):
    """Final adapter of ``stage: maisi_diffusion``."""

    recipe_type = FlowRecipe
