"""AbstractUpstreamLightning: what all runs share that train in the latent of a frozen autoencoder."""

from pathlib import Path
from typing import Any, Generic, TypeVar

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.schema import MaisiDiffusionConfig, RunConfig
from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Opened
from prod9.models.checkpoint_places import describe_input
from prod9.models.factory import ModelFactory
from prod9.training.lightning.base import AbstractLightning, Batch, Unregistered

A = TypeVar("A", AutoencoderFSQ, AutoencoderKlMaisi)


def load_vae(config: MaisiDiffusionConfig, opened: Opened | None = None) -> Loaded[AutoencoderKlMaisi]:
    """Load the autoencoder of ``inputs.autoencoder``; raises ConfigError when the key is not set."""
    if config.inputs.autoencoder is None:
        raise ConfigError(
            "inputs.autoencoder: expected the run folder or checkpoint of a trained MAISI autoencoder, got null; "
            "set it, for example with --set inputs.autoencoder=outputs/maisi_vae."
        )
    return CheckpointManager.load_autoencoder(opened or config.inputs.autoencoder, stage="maisi_vae")


class AbstractUpstreamLightning(AbstractLightning, Generic[A]):
    """A run on latents or tokens. upstream: the trained autoencoder.

    It stays out of the module tree: not stored, averaged or synchronised; its path and SHA-256 are in the
    checkpoint instead.
    """

    monitor = ("val/loss", "min")

    def __init__(self, config: RunConfig, upstream: Loaded[A]) -> None:
        super().__init__(config)
        self._upstream = Unregistered(upstream)
        self._wrapper = Unregistered(
            ModelFactory.create_inference_wrapper(upstream.network, config.sliding_window)
        )
        self.examples: list[Batch] = []

    @property
    def wrapper(self) -> AutoencoderInferenceWrapper:
        """The frozen autoencoder, for volumes of any size."""
        return self._wrapper.content

    @property
    def latent_grid(self) -> tuple[int, ...]:
        """Latent positions along each axis of a whole volume."""
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

    def keep_example(self, batch: Batch) -> None:
        """Keep the first few batches of a validation for the picture."""
        if len(self.examples) < self.config.callbacks.num_samples:
            self.examples.append(batch)
