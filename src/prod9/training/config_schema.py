"""What a configuration may hold: strict, frozen pydantic models, one root per ``stage``.

Field names are the keyword arguments of the class that a section builds; defaults live here and in
:mod:`prod9.training.config_sections` only. Neither module imports torch or Lightning, so a config is checked
in well under a second.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from prod9.training.config_sections import (
    AugmentConfig,
    Bools,
    CallbacksConfig,
    CheckpointConfig,
    CombinedMetricConfig,
    Count,
    DataConfig,
    EarlyStoppingConfig,
    EMAConfig,
    Fraction,
    IntensityConfig,
    Ints,
    LrScheduleConfig,
    NonNegative,
    Positive,
    PositiveInt,
    Range,
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
    "LabelConditionalModelConfig",
    "LrScheduleConfig",
    "MaskingConfig",
    "PerceptualConfig",
    "RunConfig",
    "SamplerConfig",
    "SchedulerType",
    "Section",
    "SlidingWindowSection",
    "SplitConfig",
    "TrainerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "TransformerLossConfig",
    "TransformerModelConfig",
]

SchedulerType = Literal["log", "log2", "linear", "sqrt", "cosine", "arccos"]


# -- networks -------------------------------------------------------------------------------------


class FSQModelConfig(Section):
    """AutoencoderFSQ."""

    kind: Literal["fsq"] = Field(default="fsq", description="Autoencoder family.")
    levels: Ints = Field(default=(8, 8, 8, 6, 5), description="Quantisation levels, one per latent channel.")
    symmetric: bool = Field(default=False, description="Codes over all of [-1, 1] for even levels too.")
    in_channels: PositiveInt = Field(default=1, description="Image channels in.")
    out_channels: PositiveInt = Field(default=1, description="Image channels out.")
    num_channels: Ints = Field(default=(32, 64, 128), description="Width of each resolution.")
    num_res_blocks: Ints = Field(default=(2, 2, 2), description="Residual blocks of each resolution.")
    norm_num_groups: PositiveInt = Field(default=16, description="Groups of the group normalisation.")
    attention_levels: Bools | None = Field(
        default=None, description="Self-attention per resolution; null for none."
    )
    space_to_depth: PositiveInt = Field(
        default=1, description="Fold n³ voxels into channels first: n times coarser at almost no cost."
    )
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    use_convtranspose: bool = Field(default=False, description="Transposed convolutions in the decoder.")
    norm_float16: bool = Field(default=False, description="MAISI's half-precision norm; refused on CPU.")
    num_splits: PositiveInt = Field(
        default=1, description="Slabs a convolution is split into, to save memory."
    )
    dim_split: Literal[0, 1, 2] = Field(default=0, description="Axis of the slabs.")
    save_mem: bool = Field(default=False, description="Free cached device memory after each block; slow.")
    native_ops: bool = Field(default=True, description="Fast operators with the same weights and results.")

    @property
    def downsampling_factor(self) -> int:
        """Voxels along each axis that become one token."""
        return self.space_to_depth * 2 ** (len(self.num_channels) - 1)

    @model_validator(mode="after")
    def _resolutions_agree(self) -> "FSQModelConfig":
        depth = len(self.num_channels)
        for name in ("num_res_blocks", "attention_levels"):
            values = getattr(self, name)
            if values is not None and len(values) != depth:
                raise ValueError(
                    f"{name} must have one entry per entry of num_channels ({depth}), got {len(values)}"
                )
        if any(width % self.norm_num_groups for width in self.num_channels):
            raise ValueError(
                f"norm_num_groups ({self.norm_num_groups}) must divide every entry of num_channels, "
                f"got {list(self.num_channels)}; use {math.gcd(*self.num_channels)}"
            )
        return self


class DiscriminatorConfig(Section):
    """Patch discriminator."""

    channels: PositiveInt = Field(default=32, description="Width of the first layer.")
    num_layers_d: PositiveInt = Field(default=3, description="Strided layers.")
    in_channels: PositiveInt = Field(default=1, description="Image channels.")
    norm: Literal["group", "instance", "batch", "none"] = Field(
        default="instance", description="Normalisation."
    )


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


class PerceptualConfig(Section):
    """Perceptual term; networks with weights are resolved from local files when the config is checked."""

    network: Literal[
        "none", "focal_frequency", "discriminator_features", "alex", "vgg", "squeeze",
        "medicalnet_resnet10_23datasets", "medicalnet_resnet50_23datasets", "radimagenet_resnet50",
    ] = Field(default="none", description="Feature space of the perceptual loss.")  # fmt: skip
    weight: NonNegative = Field(default=0.0, description="Weight of the term.")


class AdversarialConfig(Section):
    """Adversarial term."""

    weight: NonNegative = Field(default=0.1, description="Weight of the term; 0 builds no discriminator.")
    criterion: Literal["hinge", "least_squares", "bce"] = Field(
        default="least_squares", description="GAN objective."
    )
    start_step: Count = Field(default=0, description="First training step with a discriminator.")
    adaptive: bool = Field(
        default=True, description="Scale by the ratio of gradient norms at the last layer."
    )
    adaptive_max: Positive = Field(default=1e4, description="Upper clamp of that ratio.")
    gradient_penalty: NonNegative = Field(default=0.0, description="R1 penalty weight.")
    learning_rate: Positive = Field(default=1e-4, description="Discriminator learning rate.")
    discriminator: DiscriminatorConfig = Field(default=DiscriminatorConfig(), description="Network.")


class AutoencoderLossConfig(Section):
    """VAEGANLoss."""

    reconstruction: Literal["l1", "l2"] = Field(default="l1", description="Reconstruction distance.")
    reconstruction_weight: Positive = Field(default=1.0, description="Its weight.")
    perceptual: PerceptualConfig = Field(default=PerceptualConfig(), description="Perceptual term.")
    adversarial: AdversarialConfig = Field(default=AdversarialConfig(), description="Adversarial term.")
    commitment_weight: NonNegative = Field(
        default=0.0, description="Distance of z to its code; FSQ needs none."
    )
    range_weight: NonNegative = Field(
        default=0.1, description="Penalty on |z| beyond 2, where tanh saturates."
    )


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


# -- masking and sampling ---


class MaskingConfig(Section):
    """MaskGiTScheduler, for training and sampling alike."""

    scheduler_type: SchedulerType = Field(default="log", description="Share of hidden tokens over time.")


class SamplerConfig(Section):
    """MaskGiTSampler."""

    steps: PositiveInt = Field(default=12, description="Decoding steps.")
    order: Literal["confidence", "halton", "random"] = Field(
        default="confidence", description="Which tokens first."
    )
    temperature: Positive = Field(default=1.0, description="Softmax temperature of the drawn tokens.")
    gumbel_temperature: NonNegative = Field(
        default=4.5, description="`confidence`: annealed Gumbel noise on the ranking."
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="Nucleus; 1 keeps every token."
    )
    guidance_scale: NonNegative = Field(
        default=0.0, description="Classifier-free guidance; 0 runs no second branch."
    )
    guidance_interval: Range = Field(
        default=(0.0, 1.0), description="Share of the steps [from, to) that is guided."
    )


class InputsConfig(Section):
    """Checkpoints of earlier stages."""

    autoencoder: str | None = Field(default=None, description="Stage-1 run folder or checkpoint.")


# -- roots ----------------------------------------------------------------------------------------


class _RunConfig(Section):
    output_dir: str = Field(description="Everything this run writes goes here.")
    seed: Count = Field(default=0, description="Seed of all randomness in training.")
    data: DataConfig = Field(description="Data.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="Optimisation.")
    trainer: TrainerConfig = Field(default=TrainerConfig(), description="Hardware and logging.")
    callbacks: CallbacksConfig = Field(default=CallbacksConfig(), description="Callbacks.")
    sliding_window: SlidingWindowSection = Field(
        default=SlidingWindowSection(), description="Inference windows."
    )


class AutoencoderConfig(_RunConfig):
    """Stage 1, MaskGiT."""

    stage: Literal["autoencoder"] = Field(default="autoencoder", description="Stage.")
    model: FSQModelConfig = Field(default=FSQModelConfig(), description="Autoencoder.")
    loss: AutoencoderLossConfig = Field(default=AutoencoderLossConfig(), description="Loss.")

    @model_validator(mode="after")
    def _sides_fit_the_downsampling(self) -> "AutoencoderConfig":
        factor = self.model.downsampling_factor
        sides = {"data.grid": self.data.grid, "data.crop_size": self.data.crop_size}
        if self.sliding_window.strategy == "sliding_window":
            sides["sliding_window.roi_size"] = self.sliding_window.roi_size
        wrong = [
            f"{key} must be a multiple of the model's downsampling factor {factor} on each axis, "
            f"got {list(value)}; use {[max(factor, -(-side // factor) * factor) for side in value]}"
            for key, value in sides.items()
            if value is not None and any(side < 1 or side % factor for side in value)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class TransformerConfig(_RunConfig):
    """Stage 2, MaskGiT."""

    stage: Literal["transformer"] = Field(default="transformer", description="Stage.")
    inputs: InputsConfig = Field(default=InputsConfig(), description="Earlier stages.")
    model: TransformerModelConfig = Field(description="Decoder.")
    loss: TransformerLossConfig = Field(default=TransformerLossConfig(), description="Loss.")
    masking: MaskingConfig = Field(default=MaskingConfig(), description="Masking schedule.")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="Sampler.")


RunConfig = AutoencoderConfig | TransformerConfig
STAGES: dict[str, type[AutoencoderConfig] | type[TransformerConfig]] = {
    "autoencoder": AutoencoderConfig,
    "transformer": TransformerConfig,
}
