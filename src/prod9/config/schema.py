"""What a configuration may hold: strict, frozen pydantic models, one root per ``stage``.

Field names are the keyword arguments of the class that a section builds; defaults live here and in
:mod:`prod9.config.sections` only. Neither module imports torch or Lightning, so a config is checked
in well under a second.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from prod9.config.autoencoders import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderLossConfig,
    DiscriminatorConfig,
    FSQModelConfig,
    PerceptualConfig,
    Stage1Config,
)
from prod9.config.control_flow import (
    ControlNetRFModelConfig,
    FlowControlConditionConfig,
    FlowControlLossConfig,
    MaisiControlNetConfig,
    RegionContrastConfig,
)
from prod9.config.control_maskgit import (
    ControlConditionConfig,
    ControlNetLossConfig,
    ControlNetMaskGiTModelConfig,
    ControlSamplingConfig,
    MaskGiTControlNetLightningConfig,
)
from prod9.config.decoders import DecoderModelConfig, LabelConditionalModelConfig
from prod9.config.flow import (
    DiffusionLossConfig,
    FlowConfig,
    KLModelConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaisiVAELossConfig,
    RectifiedFlowModelConfig,
    RectifiedFlowSamplerConfig,
)
from prod9.config.in_context import ContextConfig, SingleStreamModelConfig
from prod9.config.refiner import (
    RefinerConfig,
    RefinerLossConfig,
    RefinerModelConfig,
    TranslationsConfig,
)
from prod9.config.sampling import MaskingConfig, SamplerConfig, SchedulerType
from prod9.config.sections import (
    AugmentConfig,
    CallbacksConfig,
    CheckpointConfig,
    CombinedMetricConfig,
    Count,
    DataConfig,
    EarlyStoppingConfig,
    EMAConfig,
    Fraction,
    InputsConfig,
    IntensityConfig,
    LrScheduleConfig,
    MedMNIST3DDataConfig,
    MuonConfig,
    NonNegative,
    Positive,
    RunSection,
    Section,
    SlidingWindowSection,
    SplitConfig,
    TrainerConfig,
    TrainingConfig,
)

__all__ = [
    "STAGES",
    "AdversarialConfig",
    "AugmentConfig",
    "AutoencoderConfig",
    "AutoencoderLossConfig",
    "CallbacksConfig",
    "CheckpointConfig",
    "CombinedMetricConfig",
    "ContextConfig",
    "ControlConditionConfig",
    "ControlNetLossConfig",
    "ControlNetMaskGiTModelConfig",
    "ControlNetRFModelConfig",
    "ControlSamplingConfig",
    "DataConfig",
    "DecoderModelConfig",
    "DiffusionLossConfig",
    "DiscriminatorConfig",
    "EMAConfig",
    "EarlyStoppingConfig",
    "FSQModelConfig",
    "FlowConfig",
    "FlowControlConditionConfig",
    "FlowControlLossConfig",
    "InputsConfig",
    "IntensityConfig",
    "KLModelConfig",
    "LabelConditionalModelConfig",
    "LrScheduleConfig",
    "MaisiControlNetConfig",
    "MaisiDiffusionConfig",
    "MaisiVAEConfig",
    "MaisiVAELossConfig",
    "MaskGiTControlNetLightningConfig",
    "MaskingConfig",
    "MedMNIST3DDataConfig",
    "MuonConfig",
    "PerceptualConfig",
    "RectifiedFlowModelConfig",
    "RectifiedFlowSamplerConfig",
    "RefinerConfig",
    "RefinerLossConfig",
    "RefinerModelConfig",
    "RegionContrastConfig",
    "RunConfig",
    "RunSection",
    "SamplerConfig",
    "SchedulerType",
    "Section",
    "SingleStreamModelConfig",
    "SlidingWindowSection",
    "SplitConfig",
    "Stage1Config",
    "TrainerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "TransformerLossConfig",
    "TransformerModelConfig",
    "TranslationsConfig",
]

# -- networks -------------------------------------------------------------------------------------

TransformerModelConfig = Annotated[
    LabelConditionalModelConfig | DecoderModelConfig | SingleStreamModelConfig, Field(discriminator="kind")
]


# -- losses ---------------------------------------------------------------------------------------


class TransformerLossConfig(Section):
    """Masked-token loss."""

    label_smoothing: Fraction = Field(default=0.1, description="Label smoothing.")
    condition_dropout: Fraction = Field(
        default=0.1, description="Share of samples trained without condition (guidance)."
    )
    background_weight: Fraction = Field(
        default=0.25,
        description="Loss weight of tokens whose volume patch is pure background; 1 weighs all alike.",
    )
    region_weight: Positive = Field(
        default=1.0,
        description="Loss weight of tokens in or near a segmented class, which are few; 1 reads no segmentation.",
    )
    region_margin: Count = Field(default=1, description="How many tokens around a class are near it.")
    ordinal_weight: NonNegative = Field(
        default=0.0, description="Weight of the ordinal per-level distance loss."
    )


# -- roots ----------------------------------------------------------------------------------------


class TransformerConfig(RunSection):
    """Stage 2, MaskGiT."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")
    can_shard: ClassVar[bool] = True

    stage: Literal["transformer"] = Field(default="transformer", description="Stage.")
    inputs: InputsConfig = Field(default=InputsConfig(), description="Earlier stages.")
    model: TransformerModelConfig = Field(description="Decoder.")
    context: ContextConfig | None = Field(
        default=None, description="Samples of kind `single_stream`, and of no other; null: its defaults."
    )
    loss: TransformerLossConfig = Field(default=TransformerLossConfig(), description="Loss.")
    masking: MaskingConfig = Field(default=MaskingConfig(), description="Masking schedule.")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="Sampler.")

    @property
    def in_context(self) -> ContextConfig:
        """What a sample of kind ``single_stream`` is made of."""
        return self.context or ContextConfig()

    @model_validator(mode="after")
    def _classes_are_enough(self) -> "TransformerConfig":
        if self.data.kind == "medmnist3d" and self.model.kind == "decoder":
            raise ValueError(
                "model.kind must be label_conditional or single_stream (few-shot) for data.kind medmnist3d, which has "
                f"no second modality to start from, got {self.model.kind}"
            )
        wanted = max(self.data.label_map.values()) + 1
        if self.data.kind == "medmnist3d" and self.model.num_classes != wanted:
            raise ValueError(
                f"model.num_classes must be {wanted} for {self.data.name}, got {self.model.num_classes}"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_known(self) -> "TransformerConfig":
        if self.data.kind == "medmnist3d" and self.loss.region_weight != 1.0:
            raise ValueError(
                "loss.region_weight must be 1 for data.kind medmnist3d, which has no segmentations, got "
                f"{self.loss.region_weight}"
            )
        return self

    @model_validator(mode="after")
    def _context_fits(self) -> "TransformerConfig":
        if self.model.kind != "single_stream":
            if self.context is not None:
                raise ValueError(
                    f"context is read by model.kind single_stream alone, got kind {self.model.kind}; remove it"
                )
            return self
        if self.data.kind == "medmnist3d":
            return self._shows_examples_alone()
        others = self.data.images_per_case - 1
        wanted = max(1, self.in_context.min_sources, self.in_context.max_sources or 0)
        if wanted > others:
            raise ValueError(
                f"data.modalities must name at least {wanted + 1} for {wanted} sources of a target, "
                f"got {others + 1}; name more, or lower context.max_sources"
            )
        return self

    def _shows_examples_alone(self) -> "TransformerConfig":
        context = self.in_context
        if context.min_sources or context.max_sources or not context.max_examples:
            raise ValueError(
                "context must be {min_sources: 0, max_examples: N} with N of 1 or more for data.kind medmnist3d, whose "
                f"samples have no other modality, got min_sources {context.min_sources}, max_sources "
                f"{context.max_sources}, max_examples {context.max_examples}"
            )
        return self


RunConfig = (
    AutoencoderConfig
    | TransformerConfig
    | MaisiVAEConfig
    | MaisiDiffusionConfig
    | MaisiControlNetConfig
    | MaskGiTControlNetLightningConfig
    | RefinerConfig
)
STAGES: dict[str, type[RunConfig]] = {
    "autoencoder": AutoencoderConfig,
    "transformer": TransformerConfig,
    "maisi_vae": MaisiVAEConfig,
    "maisi_diffusion": MaisiDiffusionConfig,
    "maisi_controlnet": MaisiControlNetConfig,
    "maskgit_controlnet": MaskGiTControlNetLightningConfig,
    "refiner": RefinerConfig,
}
