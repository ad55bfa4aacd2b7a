"""Opens the bases of a run once, and checks that its config fits them.

One class per stage, found by :func:`check_bases`; its constructor refuses bases that the config does not fit.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prod9.config.schema import (
    AutoencoderConfig,
    DetailConfig,
    FSQModelConfig,
    KLModelConfig,
    MaisiControlNetConfig,
    MaisiDetailConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaskGiTControlNetLightningConfig,
    RefinerConfig,
    RunConfig,
    RunSection,
    Stage1Config,
    TransformerConfig,
    TranslationDetailConfig,
)
from prod9.errors import ConfigError
from prod9.planning.estimates import Autoencoder, Base, Resources, estimate
from prod9.planning.footprint import Device
from prod9.stages import STAGES

if TYPE_CHECKING:
    from torch import nn

    from prod9.data.splits import Split
    from prod9.models.checkpoint_manager import Opened

_PREPARATION = ("spacing", "intensity")
_MEANING = ("grid", "spacing", "intensity", "label_map")
"""Keys of ``data`` that decide the meaning of latents, and of latents and labels."""
C = TypeVar("C", bound=RunConfig)
K = TypeVar("K", bound=RunSection)
E = TypeVar("E", TransformerConfig, MaisiDiffusionConfig)
M = TypeVar("M", FSQModelConfig, KLModelConfig)


class Bases(Generic[C]):
    """A run and what it builds on.

    Attributes:
        config: of the run.
        opened: the base that ``inputs`` must name; None for a stage 1.
        base: the config of a stage 2 that the run steers; None for other stages.
        autoencoder: the stage-1 model below; None for a stage 1 and for what trains on volumes.
    """

    opened: "Opened | None" = None
    base: Base | None = None
    autoencoder: Autoencoder | None = None

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def split(self) -> "Split | None":
        """The division of the patients that the base was trained on."""
        from prod9.data.splits import Split

        if self.opened is None or not self.opened.header["split"]:
            return None
        return Split.from_dict(self.opened.header["split"])

    def networks(self) -> "dict[str, nn.Module]":
        """Return the networks that the run trains, its own first, on the meta device, which allocates nothing."""
        from prod9.models.meta import meta_networks

        return meta_networks(self.config, self.base, self.autoencoder)

    def needs(self, device: Device) -> Resources:
        """Return what a training step on ``device`` needs."""
        from prod9.models.meta import count_parameters

        return estimate(
            self.config, count=count_parameters, base=self.base, autoencoder=self.autoencoder, device=device
        )


class AutoencoderBases(Bases[AutoencoderConfig | MaisiVAEConfig]):
    """Stage 1 of either family, which builds on nothing."""


class EncodedBases(Bases[E], Generic[E, M]):
    """Stage 2 of either family on its autoencoder.

    Args:
        config: of the run.
        kind: the config class of the autoencoder.
        what: a part of the network that divides the sides of its latent, in words.
        factor: by which it divides them.
    """

    def __init__(self, config: E, kind: "type[Stage1Config[M, Any]]", what: str, factor: int) -> None:
        super().__init__(config)
        self.opened, stage1 = _open(config, kind)
        self.autoencoder = stage1.model
        below, path = stage1.model.downsampling_factor, self.opened.path
        _require_grid(
            config, below * factor, f"the downsampling factor {below} of {path} times {what} {factor}"
        )
        for key in _PREPARATION:
            ours, theirs = getattr(config.data, key), getattr(stage1.data, key)
            if ours != theirs and None not in (ours, theirs):
                raise ConfigError(
                    f"data.{key}: expected that of {path}, {theirs}, got {ours}; latents of volumes prepared "
                    "otherwise mean something else"
                )


class TransformerBases(EncodedBases[TransformerConfig, FSQModelConfig]):
    """Stage 2 of MaskGiT."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, AutoencoderConfig, "model.patch_size", config.model.patch_size)
        config.require_autoencoder_of(label_maps=getattr(self.autoencoder, "label_maps", False))
        if config.model.kind == "decoder" and len(config.data.modalities) < 2:
            raise ConfigError(
                "data.modalities: expected at least two to translate between, got "
                f"{', '.join(config.data.modalities)}; add one, or use model.kind label_conditional."
            )


class FlowBases(EncodedBases[MaisiDiffusionConfig, KLModelConfig]):
    """Stage 2 of MAISI."""

    def __init__(self, config: MaisiDiffusionConfig) -> None:
        super().__init__(config, MaisiVAEConfig, "the U-Net's", config.model.downsampling_factor)


class RefinerBases(Bases[RefinerConfig]):
    """A refiner on the translator that it refines."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__(config)
        from prod9.training.recipes.translator import load_translator

        translator = load_translator(config)
        self.opened = translator.opened
        _require_sources(config, translator.num_sources[0])


class TranslationDetailBases(Bases[TranslationDetailConfig]):
    """A detail flow on the translator, and its refiner, whose translations it sharpens."""

    def __init__(self, config: TranslationDetailConfig) -> None:
        super().__init__(config)
        from prod9.training.recipes.translator import load_refined_translator

        translator = load_refined_translator(config)
        self.opened = translator.opened
        _require_sources(config, translator.num_sources[0])


class ReconstructionDetailBases(Bases[DetailConfig | MaisiDetailConfig]):
    """A detail flow on the autoencoder whose reconstructions it sharpens."""

    def __init__(self, config: DetailConfig | MaisiDetailConfig) -> None:
        super().__init__(config)
        from prod9.training.recipes.reconstructor import load_reconstructor

        self.opened = load_reconstructor(config).opened


class ControlBases(Bases[MaskGiTControlNetLightningConfig]):
    """Stage 3 of MaskGiT on its transformer."""

    def __init__(self, config: MaskGiTControlNetLightningConfig) -> None:
        super().__init__(config)
        self.opened, self.base = _open(config, TransformerConfig)
        self.autoencoder = FSQModelConfig.model_validate(self.opened.header["architecture"]["autoencoder"])
        _require_same_meaning(config, self.base, self.opened)
        if self.base.model.num_blocks < 2:
            raise ConfigError(
                f"inputs.transformer: expected a base of at least two blocks, got {self.opened.path} with one; control "
                "adds one residual per pair of blocks"
            )


class FlowControlBases(Bases[MaisiControlNetConfig]):
    """Stage 3 of MAISI on its flow."""

    def __init__(self, config: MaisiControlNetConfig) -> None:
        from prod9.models.checkpoint_header import require_flow
        from prod9.models.checkpoint_manager import require_schedule
        from prod9.models.released import RECTIFIED_FLOW

        super().__init__(config)
        self.opened, self.base = _open(config, MaisiDiffusionConfig)
        require_schedule(self.opened.header, RECTIFIED_FLOW, self.opened.path)
        require_flow(self.opened.header, self.opened.path)
        self.autoencoder = KLModelConfig.model_validate(self.opened.header["architecture"]["autoencoder"])
        # Published weights are fine-tuned on other grids and data than theirs.
        if "released" not in self.opened.header["data"]:
            _require_same_meaning(config, self.base, self.opened)
        factor, own = self.autoencoder.downsampling_factor, self.base.model.downsampling_factor
        _require_grid(config, factor * own, f"the autoencoder's factor {factor} times the U-Net's {own}")
        if "label" in config.condition.conditions and self.base.model.num_class_embeds is None:
            raise ConfigError(
                f"condition.conditions: expected a base with class labels for label, got {self.opened.path} without; "
                "leave label out"
            )
        if config.model.encoder == "maisi" and 2 ** (len(config.model.channels) - 1) != factor:
            raise ConfigError(
                f"model.channels: expected {factor.bit_length()} widths for encoder maisi and the "
                f"downsampling factor {factor}, got {list(config.model.channels)}"
            )


_BASES: Mapping[str, type[Bases[Any]]] = {
    "autoencoder": AutoencoderBases,
    "maisi_vae": AutoencoderBases,
    "transformer": TransformerBases,
    "maisi_diffusion": FlowBases,
    "refiner": RefinerBases,
    "detail": ReconstructionDetailBases,
    "translation_detail": TranslationDetailBases,
    "maisi_detail": ReconstructionDetailBases,
    "maskgit_controlnet": ControlBases,
    "maisi_controlnet": FlowControlBases,
}


def check_bases(config: RunConfig) -> Bases[Any]:
    """Return what ``config`` builds on, each checkpoint read once.

    Raises CheckpointError for a checkpoint that is damaged or of another stage, ConfigError where the config does not
    fit it.
    """
    return _BASES[config.stage](config)


def _open(config: RunSection, kind: type[K]) -> "tuple[Opened, K]":
    """Return the base that ``inputs`` must name, and its config."""
    from prod9.models.checkpoint_header import recorded_config
    from prod9.models.checkpoint_manager import CheckpointManager

    stage = STAGES[type(config).model_fields["stage"].default]
    key = str(stage.base_key)
    opened = CheckpointManager.open(str(config.base_path(key)), stage=stage.bases[key])
    return opened, recorded_config(opened, kind)


def _require_sources(config: RunSection, fewest: int) -> None:
    names = config.data.modalities
    if len(names) <= fewest:
        raise ConfigError(
            f"data.modalities: expected at least {fewest + 1}, a target and the sources that inputs.transformer "
            f"takes, got {', '.join(names)}; add one."
        )


def _require_grid(config: RunSection, unit: int, where: str) -> None:
    grid = config.data.grid
    if any(side % unit for side in grid):
        raise ConfigError(
            f"data.grid: expected multiples of {unit}, {where}, got {list(grid)}; use "
            f"{[-(-side // unit) * unit for side in grid]}"
        )


def _require_same_meaning(config: RunSection, base: RunSection, opened: "Opened") -> None:
    for key in _MEANING:
        ours, theirs = getattr(config.data, key), getattr(base.data, key, None)
        if ours != theirs:
            theirs, ours = (list(v) if isinstance(v, tuple) else v for v in (theirs, ours))
            raise ConfigError(
                f"data.{key}: expected that of {opened.path}, {theirs}, got {ours}; the base was trained on no other"
            )
