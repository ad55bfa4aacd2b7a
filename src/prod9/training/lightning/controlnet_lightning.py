"""ControlNetLightning: stage 3 of MAISI, a segmentation, images or a label that steer a trained flow."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.control import FlowControlRecipe


class ControlNetLightning(StageLightning):
    """Final adapter of ``stage: maisi_controlnet``."""

    recipe_type = FlowControlRecipe
