"""The sections and the root of stage 3 of MaskGiT: control of a trained transformer.

Imported by :mod:`prod9.config.schema`; import the root from there, or from
:mod:`prod9.training.maskgit_controlnet_config`.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prod9.config.sampling import MaskingConfig, SamplerConfig
from prod9.config.sections import (
    Count,
    Fraction,
    InputsConfig,
    Ints,
    NonNegative,
    Positive,
    RunSection,
    Section,
)


class ControlInputsConfig(InputsConfig):
    """Checkpoints of earlier stages."""

    transformer: str | None = Field(default=None, description="Stage-2 run folder or checkpoint: the base.")
    autoencoder: str | None = Field(
        default=None, description="Stage 1 of that base, if it is no longer where the base says."
    )


class ControlNetMaskGiTModelConfig(Section):
    """ControlNetMaskGiT; all other sizes are those of the base."""

    kind: Literal["controlnet_maskgit"] = Field(
        default="controlnet_maskgit", description="Picks the adapter."
    )
    channels: Ints = Field(default=(16, 32, 64), description="Widths of the condition encoder's stages.")


class ControlConditionConfig(Section):
    """What the control network is told."""

    condition_type: Literal["mask", "label", "both"] = Field(
        default="both", description="Segmentation, class label, or both."
    )
    num_mask_classes: Annotated[int, Field(ge=2, le=256)] = Field(
        default=4, description="Classes of a segmentation, background included: 0 to this minus 1."
    )

    @property
    def takes_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""
        return self.condition_type != "label"

    @property
    def takes_label(self) -> bool:
        """Whether the class label is part of the condition."""
        return self.condition_type != "mask"


class ControlNetLossConfig(Section):
    """ControlNetTrainer."""

    objective: Literal["cross_entropy", "mse_privileged", "mse"] = Field(
        default="cross_entropy",
        description="Hidden tokens (`cross_entropy`); the base's logits when it sees more tokens "
        "(`mse_privileged`); or on the same tokens (`mse`: the literal form, which teaches nothing).",
    )
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing of the cross-entropy.")
    control_dropout: Fraction = Field(
        default=0.1, description="Share of samples trained without control (guidance)."
    )
    anchor_weight: NonNegative = Field(
        default=1.0,
        description="Weight of the squared distance to the base's logits where control is absent.",
    )
    background_weight: Fraction = Field(
        default=0.25, description="Loss weight of tokens whose volume patch is pure background."
    )
    region_weight: Positive = Field(
        default=20.0, description="Loss weight of tokens in or near a segmented class; 1 weighs all alike."
    )
    region_margin: Count = Field(default=1, description="How many tokens around a class are near it.")
    privileged_share: Fraction = Field(
        default=0.5, description="`mse_privileged`: share of the hidden tokens that its teacher sees."
    )


class ControlSamplingConfig(Section):
    """How strongly control steers when sampling."""

    control_strength: NonNegative = Field(
        default=1.0, description="Factor of all that control adds; 0 is the base."
    )
    control_guidance_scale: NonNegative = Field(
        default=0.0, description="How far to go beyond control, away from the base alone; 0 runs no branch."
    )


class ControlValidationConfig(Section):
    """What a validation samples, beside the picture."""

    num_volumes: Count = Field(
        default=16, description="Held-out segmentations to sample for, with and without control; 0 for none."
    )
    classifier_steps: Count = Field(
        default=0,
        description="Train a modality classifier for so many steps, for the Inception Score; 0 leaves it out.",
    )


class MaskGiTControlNetLightningConfig(RunSection):
    """Stage 3, MaskGiT."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")

    stage: Literal["maskgit_controlnet"] = Field(default="maskgit_controlnet", description="Stage.")
    inputs: ControlInputsConfig = Field(default=ControlInputsConfig(), description="Earlier stages.")
    model: ControlNetMaskGiTModelConfig = Field(
        default=ControlNetMaskGiTModelConfig(), description="Control network."
    )
    condition: ControlConditionConfig = Field(default=ControlConditionConfig(), description="Condition.")
    loss: ControlNetLossConfig = Field(default=ControlNetLossConfig(), description="Loss.")
    masking: MaskingConfig = Field(default=MaskingConfig(), description="Masking schedule.")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="Sampler.")
    control: ControlSamplingConfig = Field(
        default=ControlSamplingConfig(), description="Strength of control."
    )
    validation: ControlValidationConfig = Field(
        default=ControlValidationConfig(), description="Samples of a validation."
    )

    @model_validator(mode="after")
    def _classes_are_those_of_the_masks(self) -> Self:
        told = self.condition
        if self.data.kind == "medmnist3d" and told.takes_seg and told.num_mask_classes != 2:
            raise ValueError(
                "condition.num_mask_classes must be 2 for data.kind medmnist3d, whose masks are foreground and "
                f"background, got {told.num_mask_classes}"
            )
        return self
