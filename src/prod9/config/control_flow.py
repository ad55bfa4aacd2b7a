"""The sections and the root of stage 3 of MAISI: control of a trained rectified flow.

Imported by :mod:`prod9.config.schema`; import the root from there.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prod9.config.control_maskgit import ControlSamplingConfig, ControlValidationConfig
from prod9.config.flow import RectifiedFlowSamplerConfig
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

Told = Annotated[tuple[Literal["mask", "image", "label"], ...], Field(strict=False, min_length=1)]
Sources = Annotated[tuple[str, ...], Field(strict=False)]


class FlowControlInputsConfig(InputsConfig):
    """Checkpoints of earlier stages."""

    diffusion: str | None = Field(default=None, description="Stage-2 run folder or checkpoint: the base.")
    autoencoder: str | None = Field(
        default=None, description="Stage 1 of that base, if it is no longer where the base says."
    )


class ControlNetRFModelConfig(Section):
    """ControlNetRF; all other sizes are those of the base."""

    kind: Literal["controlnet_rf"] = Field(default="controlnet_rf", description="Picks the adapter.")
    encoder: Literal["condition_encoder", "maisi"] = Field(
        default="condition_encoder",
        description="Of the condition: ours, which sees small lesions at every scale, or `maisi`, that of the "
        "published networks.",
    )
    channels: Ints = Field(
        default=(16, 32, 64),
        description="Widths of its stages; for `maisi` each after the first halves the sides.",
    )
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    native_ops: bool = Field(default=True, description="Fast operators with the same weights and results.")


class FlowControlConditionConfig(Section):
    """What the control network is told."""

    conditions: Told = Field(
        default=("mask",),
        description="Any of segmentation (`mask`), source images (`image`) and class label.",
    )
    num_mask_classes: Annotated[int, Field(ge=2, le=256)] = Field(
        default=4, description="Classes of a segmentation, background included: 0 to this minus 1."
    )
    seg_planes: Literal["one_hot", "bits"] = Field(
        default="one_hot", description="A plane a class, or MAISI's eight binary digits of its number."
    )
    source_modalities: Sources = Field(
        default=(), description="`image`: modalities shown; a target never sees its own."
    )

    @property
    def condition_type(self) -> str:
        """The conditions in words."""
        return " and ".join(self.conditions)

    @property
    def takes_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""
        return "mask" in self.conditions

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(set(self.conditions)) != len(self.conditions):
            raise ValueError(f"conditions must name each once, got {list(self.conditions)}")
        if ("image" in self.conditions) != bool(self.source_modalities):
            raise ValueError(
                "source_modalities must name modalities if and only if conditions hold `image`, got "
                f"{list(self.source_modalities)} and {list(self.conditions)}"
            )
        return self


class RegionContrastConfig(Section):
    """RegionContrast (MAISI-v2): taking the lesions from the condition must change them and nothing else."""

    weight: NonNegative = Field(default=0.01, description="Weight λ at first.")
    final_weight: NonNegative = Field(default=0.001, description="Weight λ later.")
    switch_fraction: Fraction = Field(default=0.5, description="Share of the steps with the first weight.")
    delta: NonNegative = Field(default=2.0, description="Change inside lesions that is enough.")
    margin: Count = Field(
        default=1, description="Latent positions about a lesion that count as neither side."
    )
    host_class: Count = Field(default=0, description="Class that takes the lesions' place.")


class FlowControlLossConfig(Section):
    """ControlNetTrainer."""

    objective: Literal["velocity"] = Field(
        default="velocity", description="Velocity of the controlled base against the true one."
    )
    distance: Literal["l2", "l1"] = Field(default="l2", description="Between them; MAISI's code uses `l1`.")
    control_dropout: Fraction = Field(default=0.0, description="Share of samples trained without control.")
    anchor_weight: NonNegative = Field(
        default=1.0,
        description="Weight of the squared distance to the base's velocity where control is absent.",
    )
    background_weight: Fraction = Field(
        default=0.25, description="Loss weight of latent positions whose volume patch is pure background."
    )
    region_weight: Positive = Field(
        default=20.0, description="Loss weight of positions in or near a segmented class; MAISI uses 100."
    )
    region_margin: Count = Field(default=1, description="How many positions around a class are near it.")
    contrast: RegionContrastConfig | None = Field(
        default=None, description="Region contrast, at twice the cost of a step; null for none."
    )


class MaisiControlNetConfig(RunSection):
    """Stage 3, MAISI."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")

    stage: Literal["maisi_controlnet"] = Field(default="maisi_controlnet", description="Stage.")
    inputs: FlowControlInputsConfig = Field(default=FlowControlInputsConfig(), description="Earlier stages.")
    model: ControlNetRFModelConfig = Field(default=ControlNetRFModelConfig(), description="Control network.")
    condition: FlowControlConditionConfig = Field(
        default=FlowControlConditionConfig(), description="Condition."
    )
    loss: FlowControlLossConfig = Field(default=FlowControlLossConfig(), description="Loss.")
    sampler: RectifiedFlowSamplerConfig = Field(default=RectifiedFlowSamplerConfig(), description="Sampler.")
    control: ControlSamplingConfig = Field(
        default=ControlSamplingConfig(), description="Strength of control."
    )
    validation: ControlValidationConfig = Field(
        default=ControlValidationConfig(), description="Samples of a validation."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        told = self.condition
        if self.data.kind == "medmnist3d" and (
            told.source_modalities or (told.takes_seg and told.num_mask_classes != 2)
        ):
            raise ValueError(
                "condition must be of mask (with num_mask_classes 2: foreground and background), label or both for "
                f"data.kind medmnist3d, got {told.condition_type} and {told.num_mask_classes} classes"
            )
        unknown = [m for m in self.condition.source_modalities if m not in self.data.modalities]
        if unknown:
            raise ValueError(
                f"condition.source_modalities must be among data.modalities {list(self.data.modalities)}, got "
                f"{', '.join(unknown)}"
            )
        if self.model.encoder == "maisi" and "label" in self.condition.conditions:
            raise ValueError(
                "model.encoder must be condition_encoder for the condition label, which the published encoder "
                "does not take, got maisi"
            )
        contrast = self.loss.contrast
        if contrast is not None and (
            not self.condition.takes_seg or contrast.host_class >= self.condition.num_mask_classes
        ):
            raise ValueError(
                "loss.contrast needs the condition mask and a host_class below condition.num_mask_classes "
                f"({self.condition.num_mask_classes}), got {self.condition.condition_type} and "
                f"{contrast.host_class}"
            )
        return self
