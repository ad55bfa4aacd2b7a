"""FrozenAutoencoder: the trained stage 1 below a stage, and the data modules that train on what it encodes."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import (
    CovariatesConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    TransformerConfig,
)
from prod9.config.sections import RunSection
from prod9.models.checkpoint_manager import Loaded
from prod9.models.factory import ModelFactory
from prod9.training.data.encoded import EncodedSource
from prod9.training.data.encoders import Stage1, encoded_source
from prod9.training.data.flow import BraTSDiffusionDataModule
from prod9.training.data.in_context import BraTSInContextDataModule
from prod9.training.data.label_conditional import BraTSLabelConditionalDataModule
from prod9.training.data.medmnist3d import (
    MedMNIST3DFlowDataModule,
    MedMNIST3DInContextDataModule,
    MedMNIST3DLabelConditionalDataModule,
)
from prod9.training.data.module import AbstractSegmentedDataModule
from prod9.training.data.pairs import BraTSTranslationDataModule
from prod9.training.recipes.base import Encoding, as_array

A = TypeVar("A", AutoencoderFSQ, AutoencoderKlMaisi)

TOKEN_DATA_MODULES = {
    "brats": {
        "label_conditional": BraTSLabelConditionalDataModule,
        "decoder": BraTSTranslationDataModule,
        "single_stream": BraTSInContextDataModule,
    },
    "medmnist3d": {
        "label_conditional": MedMNIST3DLabelConditionalDataModule,
        "single_stream": MedMNIST3DInContextDataModule,
    },
}
"""By ``data.kind`` and by ``model.kind`` of the decoder."""


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
    config: TransformerConfig, autoencoder: Loaded[AutoencoderFSQ], encoding: Encoding
) -> AbstractSegmentedDataModule:
    """Return the data module of a stage on the tokens of ``autoencoder``."""
    encoded = _source(autoencoder, config, encoding)
    return TOKEN_DATA_MODULES[config.data.kind][config.model.kind](config, encoded=encoded)


def latent_data_module(
    config: MaisiDiffusionConfig | MaisiControlNetConfig,
    autoencoder: Loaded[AutoencoderKlMaisi],
    encoding: Encoding,
    source_images: Sequence[str] = (),
    *,
    averages: bool = False,
    covariates: CovariatesConfig | None = None,
) -> AbstractSegmentedDataModule:
    """Return the data module of a stage on the latents of ``autoencoder``, with the scans of ``source_images``.

    Args:
        config: of the run.
        autoencoder: that of the latents.
        encoding: how volumes are encoded.
        source_images: modalities whose scans stand beside the latents.
        averages: whether their mean latent does, too.
        covariates: of the patients.
    """
    encoded = _source(autoencoder, config, encoding)
    if config.data.kind == "medmnist3d":
        return MedMNIST3DFlowDataModule(config, encoded=encoded)
    return BraTSDiffusionDataModule(
        config, encoded=encoded, source_images=source_images, averages=averages, covariates=covariates
    )


def _source(base: Stage1, config: RunSection, encoding: Encoding) -> EncodedSource:
    return encoded_source(base, config.sliding_window, device=encoding.device, encode=encoding.encode)
