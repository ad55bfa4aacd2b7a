"""AutoencoderLightning: trains the FSQ autoencoder of stage 1."""

from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.schema import AutoencoderConfig
from prod9.models.factory import ModelFactory
from prod9.training.lightning.gan import AbstractGANLightning


class AutoencoderLightning(AbstractGANLightning[AutoencoderFSQ]):
    """Final adapter of ``stage: autoencoder``. ConfigError when a perceptual network has no weights."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, ModelFactory.create_autoencoder(config.model))

    def first_batch(self, x: Tensor) -> None:
        """Bring z into the quantiser's range; the ranks see different batches, so rank 0 decides."""
        self.autoencoder.calibrate(x)
        self.broadcast_parameters(self.autoencoder)
