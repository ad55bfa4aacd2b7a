"""From a configuration to its adapter, its data module and the earlier stages that it builds on."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import (
    AutoencoderConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaskGiTControlNetLightningConfig,
    RefinerConfig,
    RunConfig,
    Stage1Config,
    TransformerConfig,
)
from prod9.data.splits import Split
from prod9.data.stores.latents import ParallelEncode
from prod9.models.checkpoint_manager import Loaded, Opened
from prod9.models.checkpoint_places import find_recorded, sha256_at
from prod9.models.export import is_export
from prod9.models.run_folder import find_checkpoints
from prod9.training.data.brats import BraTSDataModule
from prod9.training.data.control import ControlNetDataModule
from prod9.training.data.encoded import EncodedSource
from prod9.training.data.encoders import encoded_source
from prod9.training.data.flow import BraTSDiffusionDataModule
from prod9.training.data.in_context import BraTSInContextDataModule
from prod9.training.data.label_conditional import BraTSLabelConditionalDataModule
from prod9.training.data.medmnist3d import (
    MedMNIST3DDataModule,
    MedMNIST3DFlowDataModule,
    MedMNIST3DInContextDataModule,
    MedMNIST3DLabelConditionalDataModule,
)
from prod9.training.data.module import AbstractDataModule, AbstractSegmentedDataModule
from prod9.training.data.pairs import BraTSTranslationDataModule
from prod9.training.data.refiner import BraTSRefinerDataModule
from prod9.training.lightning.autoencoder_lightning import AutoencoderLightning
from prod9.training.lightning.base import AbstractLightning
from prod9.training.lightning.controlnet_lightning import (
    ControlNetLightning,
    FlowUpstream,
    load_flow_upstream,
)
from prod9.training.lightning.controlnet_maskgit_lightning import (
    ControlNetLightningMaskGiT,
    ControlUpstream,
    load_control_upstream,
)
from prod9.training.lightning.generative import load_upstream
from prod9.training.lightning.in_context_lightning import InContextTransformerLightning
from prod9.training.lightning.label_conditional_lightning import LabelConditionalTransformerLightning
from prod9.training.lightning.maisi_diffusion_lightning import MAISIDiffusionLightning
from prod9.training.lightning.maisi_vae_lightning import MAISIVAELightning
from prod9.training.lightning.refiner_lightning import RefinerLightning
from prod9.training.lightning.transformer_lightning import TransformerLightning
from prod9.training.lightning.translator import Translator, load_translator
from prod9.training.lightning.upstream import load_vae

log = logging.getLogger("prod9")

Upstream = Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi] | ControlUpstream | FlowUpstream | Translator
"""What stage 2 builds on, of either family, or stage 3, or a refiner."""

ADAPTERS = {
    "label_conditional": LabelConditionalTransformerLightning,
    "decoder": TransformerLightning,
    "single_stream": InContextTransformerLightning,
}
DATA_MODULES = {
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
"""The data modules of MaskGiT's stage 2, by dataset family and kind of decoder."""


def build_module(config: RunConfig, upstream: Upstream | None = None) -> AbstractLightning:
    """Return the adapter of ``config`` with the first weights of its seed.

    upstream: what the stage builds on, if it is already loaded.
    """
    with torch.random.fork_rng(devices=[]):
        # Layers draw their first weights from the global generator and take no other.
        torch.manual_seed(config.seed)
        if isinstance(config, AutoencoderConfig):
            return AutoencoderLightning(config)
        if isinstance(config, MaisiVAEConfig):
            return MAISIVAELightning(config)
        if isinstance(config, MaisiDiffusionConfig):
            return MAISIDiffusionLightning(config, cast(Loaded[AutoencoderKlMaisi] | None, upstream))
        if isinstance(config, RefinerConfig):
            return RefinerLightning(config, cast(Translator | None, upstream))
        if isinstance(config, MaisiControlNetConfig):
            return ControlNetLightning(config, cast(FlowUpstream | None, upstream))
        if isinstance(config, MaskGiTControlNetLightningConfig):
            assert isinstance(upstream, ControlUpstream | None)
            return ControlNetLightningMaskGiT(config, upstream)
        return ADAPTERS[config.model.kind](config, cast(Loaded[AutoencoderFSQ] | None, upstream))


def build_data_module(
    config: RunConfig,
    upstream: Upstream | None = None,
    *,
    device: torch.device | str = "cpu",
    encode: ParallelEncode | None = None,
) -> AbstractDataModule:
    """Return the data module of ``config``; stages 2 and 3 encode each volume once, with ``upstream``.

    encode: for stage 2, an :class:`~prod9.training.data.encoders.EncoderPool` of that upstream; None encodes here.
    """
    if isinstance(config, Stage1Config):
        return MedMNIST3DDataModule(config) if config.data.kind == "medmnist3d" else BraTSDataModule(config)
    if isinstance(config, MaskGiTControlNetLightningConfig):
        if not isinstance(upstream, ControlUpstream):
            upstream = load_control_upstream(config)
        base, tokenizer = upstream.base_config(config), upstream.autoencoder
        inner = _token_data_module(base, encoded_source(tokenizer, base.sliding_window, device=device))
        return ControlNetDataModule(
            config, inner=inner, base_split=Split.from_dict(upstream.base.header["split"])
        )
    if isinstance(config, MaisiControlNetConfig):
        flow = cast(FlowUpstream | None, upstream) or load_flow_upstream(config)
        encoded = encoded_source(flow.autoencoder, config.sliding_window, device=device)
        latents = _latent_data_module(config, encoded, config.condition.source_modalities)
        return ControlNetDataModule(
            config, inner=latents, base_split=Split.from_dict(flow.base.header["split"])
        )
    if isinstance(config, RefinerConfig):
        translator = cast(Translator | None, upstream) or load_translator(config)
        return BraTSRefinerDataModule(config, translator=replace(translator, device=device))
    if isinstance(config, MaisiDiffusionConfig):
        vae = cast(Loaded[AutoencoderKlMaisi] | None, upstream) or load_vae(config)
        return _latent_data_module(
            config, encoded_source(vae, config.sliding_window, device=device, encode=encode)
        )
    tokenizer = cast(Loaded[AutoencoderFSQ] | None, upstream) or load_upstream(config)
    return _token_data_module(
        config, encoded_source(tokenizer, config.sliding_window, device=device, encode=encode)
    )


def load_autoencoder(
    config: TransformerConfig | MaisiDiffusionConfig, opened: Opened | None = None
) -> Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi]:
    """Load what ``inputs.autoencoder`` of a stage 2 names, or ``opened`` of it; ConfigError when it is not set."""
    if isinstance(config, MaisiDiffusionConfig):
        return load_vae(config, opened)
    return load_upstream(config, opened)


def _latent_data_module(
    config: MaisiDiffusionConfig | MaisiControlNetConfig,
    encoded: EncodedSource,
    source_images: Sequence[str] = (),
) -> AbstractSegmentedDataModule:
    if config.data.kind == "medmnist3d":
        return MedMNIST3DFlowDataModule(config, encoded=encoded)
    return BraTSDiffusionDataModule(config, encoded=encoded, source_images=source_images)


def _token_data_module(config: TransformerConfig, encoded: EncodedSource) -> AbstractSegmentedDataModule:
    return DATA_MODULES[config.data.kind][config.model.kind](config, encoded=encoded)


def load_bases(
    config: RunConfig, start: Opened | None = None, opened: Opened | None = None
) -> Upstream | None:
    """Load what ``config`` builds on; for a run that was begun, what ``start`` was trained on, where that moved on.

    opened: what ``inputs`` of ``config`` names, if it is open already.
    """
    recorded = config if start is None else _with_recorded_inputs(config, start)
    config, opened = recorded, opened if recorded is config else None
    if isinstance(config, MaskGiTControlNetLightningConfig):
        return load_control_upstream(config, opened)
    if isinstance(config, MaisiDiffusionConfig):
        return load_vae(config, opened)
    if isinstance(config, MaisiControlNetConfig):
        return load_flow_upstream(config, opened)
    if isinstance(config, RefinerConfig):
        return load_translator(config, opened=opened)
    return load_upstream(config, opened) if isinstance(config, TransformerConfig) else None


def _with_recorded_inputs(config: RunConfig, start: Opened) -> RunConfig:
    """Return ``config`` with the very checkpoints that ``start`` was trained on, where a run was named by its folder.

    The best checkpoint of a run becomes another when it is trained on; a file that was named stays what was named.
    """
    inputs = getattr(config, "inputs", None)
    changed: dict[str, str] = {}
    for name, recorded in start.header["inputs"].items():
        named = getattr(inputs, name, None)
        if named is None or not Path(named).is_dir() or is_export(Path(named)):
            continue
        now = next(iter(find_checkpoints(Path(named), prefer="best")), None)
        place = find_recorded(start.path, start.header, name)
        if place is not None and (now is None or sha256_at(now) != recorded["sha256"]):
            changed[name] = str(place)
            log.warning("inputs.%s: %s has moved on; going on upon %s, as before.", name, named, place)
    if not changed or inputs is None:
        return config
    return config.model_copy(update={"inputs": inputs.model_copy(update=changed)})
