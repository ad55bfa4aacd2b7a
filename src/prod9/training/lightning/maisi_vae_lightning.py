"""MAISIVAELightning: trains the variational autoencoder of stage 1 of the MAISI family."""

from torch import Tensor

from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import MaisiVAEConfig
from prod9.models.factory import ModelFactory
from prod9.training.lightning.gan import AbstractGANLightning


class MAISIVAELightning(AbstractGANLightning[AutoencoderKlMaisi]):
    """Final adapter of ``stage: maisi_vae``. ConfigError when a perceptual network has no weights."""

    def __init__(self, config: MaisiVAEConfig) -> None:
        super().__init__(config, ModelFactory.create_autoencoder(config.model))

    def first_batch(self, x: Tensor) -> None:
        """Start with more signal than noise in every channel; the ranks see different batches, so rank 0 decides."""
        self.autoencoder.calibrate(x)
        self.broadcast_parameters(self.autoencoder)
