"""TransformerLightning: stage 2 with a source, tokens of one modality from the latent of another."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.transformers import TranslationRecipe


class TransformerLightning(StageLightning):
    """Final adapter of ``stage: transformer`` with ``model.kind: decoder``."""

    recipe_type = TranslationRecipe
