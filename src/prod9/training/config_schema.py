"""What a configuration may hold: strict, frozen pydantic models, one root per ``stage``.

Field names are the keyword arguments of the class that a section builds; defaults live here and in
:mod:`prod9.training.config_sections` only. Neither module imports torch or Lightning, so a config is checked
in well under a second.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prod9.training.config_autoencoder import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderLossConfig,
    DiscriminatorConfig,
    FSQModelConfig,
    PerceptualConfig,
    Stage1Config,
)
from prod9.training.config_maisi import KLModelConfig, MaisiVAEConfig, MaisiVAELossConfig
from prod9.training.config_sampling import MaskingConfig, SamplerConfig, SchedulerType
from prod9.training.config_sections import (
    AugmentConfig,
    CallbacksConfig,
    CheckpointConfig,
    CombinedMetricConfig,
    DataConfig,
    EarlyStoppingConfig,
    EMAConfig,
    Fraction,
    InputsConfig,
    IntensityConfig,
    LrScheduleConfig,
    NonNegative,
    Positive,
    PositiveInt,
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
    "DataConfig",
    "DecoderModelConfig",
    "DiscriminatorConfig",
    "EMAConfig",
    "EarlyStoppingConfig",
    "FSQModelConfig",
    "InputsConfig",
    "IntensityConfig",
    "KLModelConfig",
    "LabelConditionalModelConfig",
    "LrScheduleConfig",
    "MaisiVAEConfig",
    "MaisiVAELossConfig",
    "MaskingConfig",
    "PerceptualConfig",
    "RunConfig",
    "RunSection",
    "SamplerConfig",
    "SchedulerType",
    "Section",
    "SlidingWindowSection",
    "SplitConfig",
    "Stage1Config",
    "TrainerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "TransformerLossConfig",
    "TransformerModelConfig",
]

# -- networks -------------------------------------------------------------------------------------


class _DecoderConfig(Section):
    embed_dim: PositiveInt = Field(default=512, description="Width E.")
    num_blocks: PositiveInt = Field(default=12, description="AdaLN-Zero blocks.")
    num_heads: PositiveInt = Field(default=8, description="Attention heads.")
    mlp_ratio: Positive = Field(default=4.0, description="Hidden width of the MLP over E.")
    patch_size: PositiveInt = Field(default=1, description="Fold p³ tokens into one position.")
    groups: Literal["balanced", "dense", "per_level"] | list[list[int]] = Field(
        default="balanced", description="How the vocabulary factorises over the FSQ levels."
    )
    dropout: Fraction = Field(default=0.1, description="Dropout in attention output and MLP.")
    num_bands: PositiveInt | None = Field(
        default=None, description="Frequency bands per axis; null: as many as fit."
    )
    num_classes: PositiveInt = Field(default=4, description="Class labels.")
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "_DecoderConfig":
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim ({self.embed_dim}) must be a multiple of num_heads ({self.num_heads}); "
                f"use {max(self.num_heads, self.embed_dim // self.num_heads * self.num_heads)}"
            )
        return self


class LabelConditionalModelConfig(_DecoderConfig):
    """TransformerDecoder conditioned on the class label alone."""

    kind: Literal["label_conditional"] = Field(default="label_conditional", description="Picks the adapter.")


class DecoderModelConfig(_DecoderConfig):
    """TransformerDecoder conditioned on the target label and the latent of a co-registered source."""

    kind: Literal["decoder"] = Field(default="decoder", description="Picks the adapter.")


TransformerModelConfig = Annotated[
    LabelConditionalModelConfig | DecoderModelConfig, Field(discriminator="kind")
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
    ordinal_weight: NonNegative = Field(
        default=0.0, description="Weight of the ordinal per-level distance loss."
    )


# -- roots ----------------------------------------------------------------------------------------


class TransformerConfig(RunSection):
    """Stage 2, MaskGiT."""

    stage: Literal["transformer"] = Field(default="transformer", description="Stage.")
    inputs: InputsConfig = Field(default=InputsConfig(), description="Earlier stages.")
    model: TransformerModelConfig = Field(description="Decoder.")
    loss: TransformerLossConfig = Field(default=TransformerLossConfig(), description="Loss.")
    masking: MaskingConfig = Field(default=MaskingConfig(), description="Masking schedule.")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="Sampler.")


RunConfig = AutoencoderConfig | TransformerConfig | MaisiVAEConfig
STAGES: dict[str, type[RunConfig]] = {
    "autoencoder": AutoencoderConfig,
    "transformer": TransformerConfig,
    "maisi_vae": MaisiVAEConfig,
}
