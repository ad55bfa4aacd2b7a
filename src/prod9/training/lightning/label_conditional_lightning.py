"""LabelConditionalTransformerLightning: stage 2a, tokens of a modality from its label."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.transformers import LabelConditionalRecipe


class LabelConditionalTransformerLightning(StageLightning):
    """Final adapter of ``stage: transformer`` with ``model.kind: label_conditional``."""

    recipe_type = LabelConditionalRecipe
