"""AbstractTokenLightning: what all runs share that train on tokens of a frozen autoencoder."""

from typing import Any

from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.schema import MaskGiTControlNetLightningConfig, TransformerConfig
from prod9.models.checkpoint_manager import Loaded
from prod9.models.factory import ModelFactory
from prod9.training.lightning.upstream import AbstractUpstreamLightning


class AbstractTokenLightning(AbstractUpstreamLightning[AutoencoderFSQ]):
    """A run on tokens."""

    def __init__(
        self,
        config: TransformerConfig | MaskGiTControlNetLightningConfig,
        upstream: Loaded[AutoencoderFSQ],
    ) -> None:
        super().__init__(config, upstream)
        self.levels = tuple(upstream.header["architecture"]["autoencoder"]["levels"])
        self.sampler = ModelFactory.create_sampler(config.sampler, config.masking)

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each axis of a whole volume."""
        return self.latent_grid

    def decode(self, tokens: Tensor) -> Any:
        """Return the volume of one token grid ``[1 h w d]`` as a float32 array ``[H W D]`` in [0, 1]."""
        return self.wrapper.decode_tokens(tokens)[0, 0].float().clamp(0, 1).cpu().numpy()
