"""The sections and the roots of the detail flows, which carry soft volumes to sharp ones."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prod9.config.refiner import RefinerInputsConfig, TranslationsConfig, require_classes
from prod9.config.sections import InputsConfig, RunSection
from prod9.config.types import Fraction, Ints, NonNegative, Positive, PositiveInt, Section


class DetailModelConfig(Section):
    """DetailNetwork."""

    kind: Literal["detail"] = Field(default="detail", description="A network without sources.")
    num_classes: PositiveInt = Field(default=4, description="Class labels.")
    num_channels: Ints = Field(default=(32, 64), description="Width of each resolution of the U-Net.")
    num_res_blocks: PositiveInt = Field(
        default=1, description="Blocks per resolution, on the way down and up."
    )
    space_to_depth: PositiveInt = Field(
        default=2, description="Edge of the blocks of voxels that become one position of the U-Net."
    )
    detail_channels: PositiveInt = Field(default=8, description="Width at full resolution.")
    detail_convs: PositiveInt = Field(default=2, description="Convolutions at full resolution.")
    embed_dim: PositiveInt = Field(default=64, description="Width of time, noise level and class.")
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")

    @property
    def num_sources(self) -> int:
        """Modalities that can be a source."""
        return 0


class TranslationDetailModelConfig(DetailModelConfig):
    """DetailNetwork with the sources of a translation."""

    kind: Literal["translation_detail"] = Field(  # pyrefly: ignore[bad-override]
        default="translation_detail", description="A network with the sources of a translation."
    )

    @property
    def num_sources(self) -> int:
        """Modalities that can be a source: all."""
        return self.num_classes


class DetailFlowConfig(Section):
    """DetailFlow."""

    start_noise: Positive = Field(
        default=0.05, description="Standard deviation of the noise that is added to the soft volume."
    )
    residual: Positive = Field(
        default=0.05, description="Usual deviation of a scan from its soft volume, in the head."
    )


class DetailSamplerConfig(Section):
    """How volumes are sharpened."""

    steps: PositiveInt = Field(default=4, description="Steps from the soft volume to the sharp one.")
    max_steps: PositiveInt = Field(default=8, description="The most steps that may be asked for.")

    @model_validator(mode="after")
    def _steps_are_known(self) -> Self:
        if self.steps > self.max_steps:
            raise ValueError(
                f"steps: expected at most max_steps ({self.max_steps}), got {self.steps}; lower it, or raise "
                "max_steps"
            )
        return self


class DetailLossConfig(Section):
    """DetailTrainer."""

    region_weight: Positive = Field(
        default=3.0, description="Weight of voxels in any segmented class; 1 weighs all alike."
    )
    level_share: Fraction = Field(
        default=0.5, description="Share of samples whose scan gets another level of noise."
    )
    max_level: NonNegative = Field(
        default=2.0, description="The most noise that such a scan gets, over its own; the least is none."
    )


class ReconstructionsConfig(Section):
    """The reconstructions that a detail flow is trained on."""

    per_scan: PositiveInt = Field(default=1, description="Reconstructions made of each scan.")
    latent_noise: NonNegative = Field(
        default=0.0,
        description="Noise that is added to the latent before it is quantised and decoded, over its deviation, since "
        "generated latents have errors that encoded ones have not.",
    )


class DetailSection(RunSection):
    """What the roots of all detail flows have in common."""

    model: DetailModelConfig = Field(default=DetailModelConfig(), description="Network.")
    flow: DetailFlowConfig = Field(default=DetailFlowConfig(), description="Flow.")
    sampler: DetailSamplerConfig = Field(default=DetailSamplerConfig(), description="Sampler.")
    loss: DetailLossConfig = Field(default=DetailLossConfig(), description="Loss.")

    @property
    def copies(self) -> int:
        """Soft volumes that are made of each scan."""
        return 1

    @property
    def decode(self) -> Literal["mean", "sample"] | None:
        """Which translations the soft volumes are; None for reconstructions."""
        return None

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        require_classes(self.model.num_classes, self.data.label_map)
        return self


class ReconstructionDetailSection(DetailSection):
    """What the detail flows on reconstructions have in common."""

    inputs: InputsConfig = Field(default=InputsConfig(), description="Earlier stages.")
    reconstructions: ReconstructionsConfig = Field(
        default=ReconstructionsConfig(), description="The soft volumes."
    )

    @property
    def copies(self) -> int:
        """Soft volumes that are made of each scan."""
        return self.reconstructions.per_scan


class DetailConfig(ReconstructionDetailSection):
    """Detail flow on reconstructions, MaskGiT."""

    stage: Literal["detail"] = Field(default="detail", description="Stage.")


class MaisiDetailConfig(ReconstructionDetailSection):
    """Detail flow on reconstructions, MAISI."""

    stage: Literal["maisi_detail"] = Field(default="maisi_detail", description="Stage.")


class TranslationDetailInputsConfig(RefinerInputsConfig):
    """Checkpoints of earlier stages."""

    refiner: str | None = Field(
        default=None, description="Refiner of that translator; null: what lies beside it, if anything does."
    )


class TranslationDetailConfig(DetailSection):
    """Detail flow on translations, MaskGiT."""

    stage: Literal["translation_detail"] = Field(default="translation_detail", description="Stage.")
    inputs: TranslationDetailInputsConfig = Field(
        default=TranslationDetailInputsConfig(), description="Earlier stages."
    )
    model: TranslationDetailModelConfig = Field(
        default=TranslationDetailModelConfig(), description="Network."
    )
    translations: TranslationsConfig = Field(default=TranslationsConfig(), description="The soft volumes.")

    @property
    def copies(self) -> int:
        """Soft volumes that are made of each scan."""
        return self.translations.per_target

    @property
    def decode(self) -> Literal["mean", "sample"]:
        """Which translations the soft volumes are."""
        return self.translations.decode
