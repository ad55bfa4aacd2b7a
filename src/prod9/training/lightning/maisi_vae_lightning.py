"""MAISIVAELightning: trains the variational autoencoder of stage 1 of the MAISI family."""

from prod9.training.lightning.gan import GANLightning
from prod9.training.recipes.autoencoders import KLRecipe


class MAISIVAELightning(GANLightning):
    """Final adapter of ``stage: maisi_vae``. ConfigError when a perceptual network has no weights."""

    recipe_type = KLRecipe
