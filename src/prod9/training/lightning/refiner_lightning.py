"""RefinerLightning: trains the refiner of translations."""

from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.refiner import RefinerRecipe


class RefinerLightning(StageLightning):
    """Final adapter of ``stage: refiner``."""

    recipe_type = RefinerRecipe
