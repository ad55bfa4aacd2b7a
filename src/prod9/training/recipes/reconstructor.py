"""Reconstructor: the trained autoencoder whose reconstructions a detail flow learns to sharpen."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.schema import DetailConfig, MaisiDetailConfig
from prod9.data.splits import Split
from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager, Opened, require_scans
from prod9.models.factory import ModelFactory
from prod9.stages import STAGES
from prod9.training.recipes.base import named_input


@dataclass(frozen=True, eq=False)
class Reconstructor:
    """A stage-1 run, as ``inputs`` of ``config`` names it.

    Its network is loaded when the first reconstruction is asked for: with all of them in the store, never.
    """

    config: DetailConfig | MaisiDetailConfig
    opened: Opened
    device: str | torch.device = "cpu"

    @property
    def split(self) -> Split:
        """The patients that it was trained on and not."""
        return Split.from_dict(self.opened.header["split"])

    @property
    def settings(self) -> list[str]:
        """All that its reconstructions depend on beside the scan: weights, windows and noise."""
        section = self.config.reconstructions
        return [
            self.opened.sha256,
            self.config.sliding_window.model_dump_json(),
            f"latent_noise {section.latent_noise}",
        ]

    @torch.inference_mode()
    def __call__(self, scan: np.ndarray, *, seed: int) -> np.ndarray:
        """Return the reconstruction of ``scan``, float32 ``[H W D]`` in [0, 1]; ``seed`` is that of its noise."""
        wrapper, noise = self._wrapper, self.config.reconstructions.latent_noise
        z, _ = wrapper.encode(torch.from_numpy(scan)[None, None].to(self.device))
        if noise > 0:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(z.shape, generator=generator).to(z.device)
            z = z + noise * z.std((0, 2, 3, 4), keepdim=True) * drawn
        network = wrapper.autoencoder
        latent = network.quantize(z) if isinstance(network, AutoencoderFSQ) else z
        volume = wrapper.decode(latent)[0, 0].float().clamp(0.0, 1.0).cpu().numpy()
        return volume[tuple(slice(side) for side in scan.shape)]

    @cached_property
    def _wrapper(self) -> AutoencoderInferenceWrapper:
        stage = self.opened.header["stage"]
        network = CheckpointManager.load_autoencoder(self.opened, stage=stage, device=self.device).network  # pyrefly: ignore[no-matching-overload]
        return ModelFactory.create_inference_wrapper(network, self.config.sliding_window)


def load_reconstructor(
    config: DetailConfig | MaisiDetailConfig,
    *,
    device: str | torch.device = "cpu",
    opened: Opened | None = None,
) -> Reconstructor:
    """Read the header of ``inputs.autoencoder``, and refuse what ``config`` does not fit (ConfigError)."""
    stage = STAGES[type(config).model_fields["stage"].default].bases["autoencoder"]
    path = named_input(config, "autoencoder", what=STAGES[stage].title, example=STAGES[stage].configs[0])
    opened = CheckpointManager.open(opened or path, stage=stage)
    require_scans(opened)
    for key in ("spacing", "intensity"):
        ours, theirs = config.data.model_dump(mode="json")[key], opened.header["data"][key]
        if ours and theirs and ours != theirs:  # an old header may not know them
            raise ConfigError(
                f"data.{key}: expected that of {opened.path}, {theirs}, got {ours}; it reconstructs volumes prepared "
                "its way alone"
            )
    return Reconstructor(config, opened, device)
