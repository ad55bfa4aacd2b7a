"""ControlNetLightningMaskGiT: stage 3, a segmentation or a label that steers a trained transformer."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.control import TokenControlRecipe


class ControlNetLightningMaskGiT(StageLightning):
    """Final adapter of ``stage: maskgit_controlnet``."""

    recipe_type = TokenControlRecipe
