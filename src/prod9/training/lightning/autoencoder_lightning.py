"""AutoencoderLightning: trains the FSQ autoencoder of stage 1."""

from prod9.training.lightning.gan import GANLightning
from prod9.training.recipes.autoencoders import FSQRecipe


class AutoencoderLightning(GANLightning):
    """Final adapter of ``stage: autoencoder``. ConfigError when a perceptual network has no weights."""

    recipe_type = FSQRecipe
