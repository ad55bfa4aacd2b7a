"""FrozenAutoencoder: the trained stage 1 below a stage, and the data modules that train on what it encodes."""

from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import FSQModelConfig, MaisiControlNetConfig, MaisiDiffusionConfig, TransformerConfig
from prod9.config.sections import RunSection
from prod9.data.splits import Split
from prod9.models.checkpoint_manager import Loaded
from prod9.models.factory import ModelFactory
from prod9.training.data.brats import AbstractBraTSDataModule, BraTSDataModule
from prod9.training.data.encoders import build_encode
from prod9.training.data.flow import BraTSDiffusionDataModule
from prod9.training.data.in_context import BraTSInContextDataModule
from prod9.training.data.label_conditional import BraTSLabelConditionalDataModule
from prod9.training.data.medmnist3d import MedMNIST3DDataModule
from prod9.training.recipes.base import Encoding, as_array

A = TypeVar("A", AutoencoderFSQ, AutoencoderKlMaisi)

TOKEN_DATA_MODULES = {
    "label_conditional": BraTSLabelConditionalDataModule,
    "decoder": BraTSDataModule,
    "single_stream": BraTSInContextDataModule,
}
"""By ``model.kind`` of the decoder."""


class FrozenAutoencoder(Generic[A]):
    """A trained autoencoder that later stages encode and decode whole volumes with.

    It is in no module tree: neither stored, averaged nor synchronised. Headers record its path and SHA-256.
    """

    def __init__(self, loaded: Loaded[A], config: RunSection) -> None:
        self.loaded = loaded
        self.wrapper = ModelFactory.create_inference_wrapper(loaded.network, config.sliding_window)
        factor = loaded.network.downsampling_factor
        self.latent_grid = tuple(side // factor for side in config.data.grid)

    @property
    def section(self) -> dict[str, Any]:
        """The model section that rebuilds it."""
        return self.loaded.header["architecture"]["autoencoder"]

    def place(self, device: torch.device) -> None:
        """Bring it to ``device``."""
        self.wrapper.to(device).eval()

    def decode(self, latent: Tensor) -> np.ndarray:
        """Return the volume of one latent ``[1 Z h w d]`` as a float32 array ``[H W D]`` in [0, 1]."""
        return as_array(self.wrapper.decode(latent))

    def decode_tokens(self, tokens: Tensor) -> np.ndarray:
        """Return the volume of one token grid ``[1 h w d]`` as a float32 array ``[H W D]`` in [0, 1]."""
        return as_array(self.wrapper.decode_tokens(tokens))


def token_data_module(
    config: TransformerConfig,
    autoencoder: Loaded[AutoencoderFSQ],
    encoding: Encoding,
) -> AbstractBraTSDataModule | MedMNIST3DDataModule:
    """Return the data module of a stage on the tokens of ``autoencoder``."""
    # Loader processes look codes up on the CPU, wherever the network is.
    codebook = ModelFactory.create_quantizer(
        FSQModelConfig.model_validate(autoencoder.header["architecture"]["autoencoder"])
    )
    brats = TOKEN_DATA_MODULES[config.model.kind]
    return (MedMNIST3DDataModule if config.data.kind == "medmnist3d" else brats)(
        config,
        encode=encoding.encode or build_encode(autoencoder, config.sliding_window, device=encoding.device),
        indices_to_codes=codebook.indices_to_codes,
        encoder_hash=autoencoder.sha256,
        upstream_split=Split.from_dict(autoencoder.header["split"]),
    )


def latent_data_module(
    config: MaisiDiffusionConfig | MaisiControlNetConfig,
    autoencoder: Loaded[AutoencoderKlMaisi],
    encoding: Encoding,
) -> AbstractBraTSDataModule | MedMNIST3DDataModule:
    """Return the data module of a stage on the latents of ``autoencoder``."""
    family = MedMNIST3DDataModule if config.data.kind == "medmnist3d" else BraTSDiffusionDataModule
    return family(
        config,
        encode=encoding.encode or build_encode(autoencoder, config.sliding_window, device=encoding.device),
        encoder_hash=autoencoder.sha256,
        upstream_split=Split.from_dict(autoencoder.header["split"]),
    )
