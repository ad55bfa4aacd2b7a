"""AbstractTokenLightning: what all runs share that train on tokens of a frozen autoencoder."""

from pathlib import Path
from typing import Any

from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.training.config_schema import MaskGiTControlNetLightningConfig, TransformerConfig
from prod9.training.lightning.base import AbstractLightning, Batch, Unregistered
from prod9.training.model.checkpoint_manager import Loaded, describe_input
from prod9.training.model.model_factory import ModelFactory


class AbstractTokenLightning(AbstractLightning):
    """A run on tokens. upstream: the trained autoencoder.

    It stays out of the module tree: not stored, averaged or synchronised; its path and SHA-256 are in the
    checkpoint instead.
    """

    monitor = ("val/loss", "min")
    config: TransformerConfig | MaskGiTControlNetLightningConfig

    def __init__(
        self,
        config: TransformerConfig | MaskGiTControlNetLightningConfig,
        upstream: Loaded[AutoencoderFSQ],
    ) -> None:
        super().__init__(config)
        self._upstream = Unregistered(upstream)
        self._wrapper = Unregistered(
            ModelFactory.create_inference_wrapper(upstream.network, config.sliding_window)
        )
        self.levels = tuple(upstream.header["architecture"]["autoencoder"]["levels"])
        self.sampler = ModelFactory.create_sampler(config.sampler, config.masking)
        self.examples: list[Batch] = []

    @property
    def wrapper(self) -> AutoencoderInferenceWrapper:
        """The frozen autoencoder, for volumes of any size."""
        return self._wrapper.content

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each axis of a whole volume."""
        factor = self.wrapper.autoencoder.downsampling_factor
        return tuple(side // factor for side in self.config.data.grid)

    def peak_rates(self) -> list[float]:
        """Return the peak rate of the one network that is trained."""
        return [self.config.training.learning_rate]

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the autoencoder is and its hash."""
        return {"autoencoder": self.describe(self._upstream.content)}

    def describe(self, loaded: Loaded[Any]) -> dict[str, str]:
        """Return what the header records of an earlier stage."""
        return describe_input(loaded.path, loaded.sha256, Path(self.config.output_dir))

    def on_fit_start(self) -> None:
        """Bring what is frozen to the device; Lightning does not know it."""
        self.wrapper.to(self.device).eval()

    def on_validation_start(self) -> None:
        """Bring what is frozen to the device, where validation is all that is done."""
        self.on_fit_start()

    def on_test_start(self) -> None:
        """Bring what is frozen to the device, where testing is all that is done."""
        self.on_fit_start()

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of the last validation."""
        self.examples = []

    def decode(self, tokens: Tensor) -> Any:
        """Return the volume of one token grid ``[1 h w d]`` as a float32 array ``[H W D]`` in [0, 1]."""
        codes = self.wrapper.autoencoder.indices_to_codes(tokens)
        return self.wrapper.decode(codes)[0, 0].float().clamp(0, 1).cpu().numpy()
