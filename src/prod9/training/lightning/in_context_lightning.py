"""InContextTransformerLightning: stage 2b, tokens of one modality from any others of the same patient."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.transformers import InContextRecipe


class InContextTransformerLightning(StageLightning):
    """Final adapter of ``stage: transformer`` with ``model.kind: single_stream``."""

    recipe_type = InContextRecipe
