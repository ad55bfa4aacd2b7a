"""Stage 2 of MaskGiT: decoder, context, loss, masking schedule and sampler, and the root of a run.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prod9.config.covariates import CovariatesConfig, Shape, check_covariates
from prod9.config.sections import AutoguidanceSection, InputsConfig, RegionWeights, RunSection
from prod9.config.types import Count, Fraction, NonNegative, Positive, PositiveInt, Range, Section
from prod9.errors import ConfigError

SchedulerType = Literal["log", "log2", "linear", "sqrt", "cosine", "arccos"]

# -- decoders -------------------------------------------------------------------------------------


class DecoderSection(Section):
    """What all decoders have in common."""

    embed_dim: PositiveInt = Field(default=512, description="Width E.")
    num_blocks: PositiveInt = Field(default=12, description="AdaLN-Zero blocks.")
    num_heads: PositiveInt = Field(default=8, description="Attention heads.")
    mlp_ratio: Positive = Field(default=4.0, description="Hidden width of the MLP over E.")
    patch_size: PositiveInt = Field(default=1, description="Fold p³ tokens into one position.")
    groups: Literal["balanced", "dense", "per_level"] | list[list[int]] = Field(
        default="balanced", description="How the vocabulary factorises over the FSQ levels."
    )
    coupling_channels: Count = Field(
        default=0,
        description="Width of the perceptron through which the groups of a token depend on each other; 0: independent.",
    )
    dropout: Fraction = Field(default=0.1, description="Dropout in attention output and MLP.")
    num_bands: PositiveInt | None = Field(
        default=None, description="Frequency bands per axis; null: as many as fit."
    )
    num_classes: PositiveInt = Field(default=4, description="Class labels.")
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim: expected a multiple of num_heads ({self.num_heads}), got {self.embed_dim}; "
                f"use {max(self.num_heads, self.embed_dim // self.num_heads * self.num_heads)}"
            )
        return self


class LabelConditionalModelConfig(DecoderSection):
    """TransformerDecoder conditioned on the class label alone."""

    kind: Literal["label_conditional"] = Field(default="label_conditional", description="Picks the adapter.")
    covariates: Shape | None = Field(
        default=None,
        description="With `covariates`: how many there are, and features of each; null for none.",
    )


class DecoderModelConfig(DecoderSection):
    """TransformerDecoder conditioned on the target label and the latent of a co-registered source."""

    kind: Literal["decoder"] = Field(default="decoder", description="Picks the adapter.")


class SingleStreamModelConfig(DecoderSection):
    """TransformerDecoderSingleStream: any number of sources, in any order, in one sequence with the target."""

    kind: Literal["single_stream"] = Field(default="single_stream", description="Picks the adapter.")
    attention: Literal["prefix", "full"] = Field(
        default="prefix",
        description="`prefix`: sources don't attend to the target and are cached; `full`: they do, at every step.",
    )
    aligned: bool = Field(
        default=True,
        description="Also add the co-registered sources' values at each position to the target's input.",
    )
    context_stride: PositiveInt = Field(
        default=1,
        description="Positions along each axis that share one element of the context; 2 makes it 8 times shorter.",
    )


TransformerModelConfig = Annotated[
    LabelConditionalModelConfig | DecoderModelConfig | SingleStreamModelConfig, Field(discriminator="kind")
]


class ContextConfig(Section):
    """The samples of stage 2b: a random target, and random sources of the same patient."""

    source: Literal["latent", "codes"] = Field(
        default="latent", description="Sources before quantisation (`latent`), or after it (`codes`)."
    )
    min_sources: Count = Field(
        default=1, description="Fewest sources of a sample; 0: also from the label alone."
    )
    max_sources: PositiveInt | None = Field(
        default=None, description="Most sources of a sample; null: all other modalities."
    )
    max_examples: Count = Field(
        default=0,
        description="Most other patients shown as examples, each with the target's and the sources' modalities; for "
        "MedMNIST3D, other samples of the class.",
    )

    @model_validator(mode="after")
    def _fewest_below_most(self) -> Self:
        if self.max_sources is not None and self.min_sources > self.max_sources:
            raise ValueError(
                f"min_sources: expected at most max_sources ({self.max_sources}), got {self.min_sources}; lower it"
            )
        return self

    def sources(self, num_modalities: int) -> range:
        """Return the numbers of sources that a sample of ``num_modalities`` may have."""
        most = num_modalities - 1 if self.max_sources is None else self.max_sources
        return range(self.min_sources, most + 1)

    def slots(self, num_modalities: int) -> int:
        """Return how many volumes a sample may hold beside its target, examples included."""
        most = self.sources(num_modalities)[-1]
        return most + self.max_examples * (most + 1)


# -- training and sampling ------------------------------------------------------------------------


class TransformerLossConfig(RegionWeights):
    """Masked-token loss."""

    label_smoothing: Fraction = Field(default=0.1, description="Label smoothing.")
    condition_dropout: Fraction = Field(
        default=0.1, description="Share of samples trained without condition (guidance)."
    )
    covariate_dropout: Fraction = Field(
        default=0.3, description="With `covariates`: share of them, each by itself, hidden in training."
    )
    region_weight: Positive = Field(
        default=1.0,
        description="Loss weight of positions in or near a segmented class, which are few; 1 reads no segmentation.",
    )
    ordinal_weight: NonNegative = Field(
        default=0.0, description="Weight of the ordinal per-level distance loss."
    )

    @property
    def weighted_region(self) -> str | None:
        """The key that makes the loss read segmentations; None if it reads none."""
        if self.class_weights:
            return "loss.class_weights"
        return None if self.region_weight == 1.0 else "loss.region_weight"


class MaskingConfig(Section):
    """MaskGiTScheduler for training, and for sampling unless ``sampler.scheduler`` names another."""

    scheduler_type: SchedulerType = Field(default="log", description="Share of hidden tokens over time.")


class SamplerConfig(AutoguidanceSection):
    """MaskGiTSampler."""

    scheduler: SchedulerType | None = Field(
        default=None, description="Share of hidden tokens over the steps; null: that of `masking`."
    )
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
    guidance_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How guidance grows over its interval."
    )
    remasking: Fraction = Field(
        default=0.0, description="η of ReMDM: how many of the drawn tokens each step draws anew; 0 for none."
    )


# -- root -----------------------------------------------------------------------------------------


class TransformerConfig(RunSection):
    """Stage 2, MaskGiT."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")
    takes_label_maps: ClassVar[bool] = True
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
    covariates: CovariatesConfig | None = Field(
        default=None, description="What is known of patients, as a condition beside the label; null for none."
    )

    @property
    def in_context(self) -> ContextConfig:
        """The samples of kind ``single_stream``."""
        return self.context or ContextConfig()

    @property
    def seg_key(self) -> str | None:
        """The key that makes the run learn from segmentations; None if it does not."""
        return self.loss.weighted_region

    @model_validator(mode="after")
    def _covariates_fit(self) -> Self:
        check_covariates(self.covariates, self.model, data=self.data)
        return self

    def require_autoencoder_of(self, *, label_maps: bool) -> None:
        """Refuse (ConfigError) an autoencoder of label maps for scans, and one of scans for label maps."""
        if label_maps != self.data.shows_labels:
            kinds = {True: "label maps", False: "scans"}
            raise ConfigError(
                f"inputs.autoencoder: expected an autoencoder of {kinds[self.data.shows_labels]}, which "
                f"data.modalities names, got one of {kinds[label_maps]}; name another, or correct data.modalities."
            )

    @model_validator(mode="after")
    def _classes_hold_the_labels(self) -> Self:
        labels = {name: self.data.label_map[name] for name in self.data.modalities}
        if max(labels.values()) >= self.model.num_classes:
            raise ValueError(
                f"model.num_classes: expected more than the largest label of data.label_map ({labels}), got "
                f"{self.model.num_classes}; set it to {max(labels.values()) + 1}"
            )
        return self

    @model_validator(mode="after")
    def _label_maps_fit(self) -> Self:
        if not self.data.shows_labels:
            return self
        if self.model.kind != "label_conditional":
            raise ValueError(
                f"model.kind: expected label_conditional for label maps, which have no sources, got {self.model.kind}"
            )
        if key := self.loss.weighted_region:
            raise ValueError(
                f"{key}: expected its default for label maps, which the run learns anyway, got another value; remove it"
            )
        return self

    @model_validator(mode="after")
    def _medmnist3d_fits(self) -> Self:
        if self.data.kind != "medmnist3d":
            return self
        if self.model.kind == "decoder":
            raise ValueError(
                "model.kind: expected label_conditional or single_stream (few-shot) for data.kind medmnist3d, which "
                f"has no second modality to start from, got {self.model.kind}"
            )
        wanted = max(self.data.label_map.values()) + 1
        if self.model.num_classes != wanted:
            raise ValueError(
                f"model.num_classes: expected {wanted} for {self.data.name}, got {self.model.num_classes}"
            )
        if key := self.loss.weighted_region:
            raise ValueError(
                f"{key}: expected its default for data.kind medmnist3d, which has no segmentations, got another value; "
                "remove it"
            )
        context = self.in_context
        if self.model.kind == "single_stream" and (
            context.min_sources or context.max_sources or not context.max_examples
        ):
            raise ValueError(
                "context: expected {min_sources: 0, max_examples: N} with N of 1 or more for data.kind medmnist3d, "
                f"whose samples have no other modality, got min_sources {context.min_sources}, max_sources "
                f"{context.max_sources}, max_examples {context.max_examples}"
            )
        return self

    @model_validator(mode="after")
    def _context_fits(self) -> Self:
        if self.model.kind != "single_stream":
            if self.context is not None:
                raise ValueError(
                    f"context: expected none for model.kind {self.model.kind}, since single_stream alone reads it, got "
                    "one; remove it"
                )
            return self
        others = self.data.images_per_case - 1
        wanted = max(1, self.in_context.min_sources, self.in_context.max_sources or 0)
        if self.data.kind != "medmnist3d" and wanted > others:
            raise ValueError(
                f"data.modalities: expected at least {wanted + 1} for {wanted} sources of a target, "
                f"got {others + 1}; name more, or lower context.max_sources"
            )
        return self
