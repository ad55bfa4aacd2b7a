"""Stage 3: control of a trained transformer (MaskGiT) or of a trained flow (MAISI).

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prod9.config.flow import RectifiedFlowSamplerConfig
from prod9.config.maskgit import MaskingConfig, SamplerConfig
from prod9.config.sections import BaseInputsSection, RegionWeights, RunSection
from prod9.config.types import Count, Fraction, Ints, NonNegative, Section

# -- both families --------------------------------------------------------------------------------


class ControlConditionSection(Section):
    """What the conditions of both families have in common."""

    num_mask_classes: Annotated[int, Field(ge=2, le=256)] = Field(
        default=4, description="Classes of a segmentation, background included: 0 to this minus 1."
    )


class ControlLossSection(RegionWeights):
    """What the losses of both families have in common."""

    control_dropout: Fraction = Field(
        default=0.1, description="Share of samples trained without control (guidance)."
    )
    anchor_weight: NonNegative = Field(
        default=1.0,
        description="Weight of the squared distance to the base's prediction where there is no control.",
    )


def require_known_classes(loss: ControlLossSection, condition: ControlConditionSection) -> None:
    """Refuse weights for classes that no segmentation has."""
    given, known = len(loss.class_weights), condition.num_mask_classes - 1
    if given > known:
        raise ValueError(
            f"loss.class_weights: expected at most {known} factors, one for each class of condition.num_mask_classes "
            f"but the background, got {given}; remove the last ones"
        )


class ControlSamplingConfig(Section):
    """How strongly control steers when sampling."""

    control_strength: NonNegative = Field(
        default=1.0, description="Factor of all that control adds; 0 is the base."
    )
    control_guidance_scale: NonNegative = Field(
        default=0.0,
        description="How far to extrapolate from the base alone through the controlled base; 0 runs no branch.",
    )


class ControlValidationConfig(Section):
    """What a validation samples, beside the picture."""

    num_volumes: Count = Field(
        default=16, description="Held-out segmentations to sample for, with and without control; 0 for none."
    )
    classifier_steps: Count = Field(
        default=0,
        description="Steps of a modality classifier, trained for the Inception Score; 0 leaves the score out.",
    )


class ControlSection(RunSection):
    """What the roots of both families have in common."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")

    control: ControlSamplingConfig = Field(
        default=ControlSamplingConfig(), description="Strength of control."
    )
    validation: ControlValidationConfig = Field(
        default=ControlValidationConfig(), description="Samples of a validation."
    )


# -- MaskGiT --------------------------------------------------------------------------------------


class ControlInputsConfig(BaseInputsSection):
    """Checkpoints of earlier stages."""

    transformer: str | None = Field(default=None, description="Stage-2 run folder or checkpoint: the base.")


class ControlNetMaskGiTModelConfig(Section):
    """ControlNetMaskGiT; all other sizes are those of the base."""

    kind: Literal["controlnet_maskgit"] = Field(
        default="controlnet_maskgit", description="Picks the adapter."
    )
    channels: Ints = Field(default=(16, 32, 64), description="Widths of the condition encoder's stages.")


class ControlConditionConfig(ControlConditionSection):
    """The input of the control network."""

    condition_type: Literal["mask", "label", "both"] = Field(
        default="both", description="Segmentation, class label, or both."
    )

    @property
    def takes_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""
        return self.condition_type != "label"

    @property
    def takes_label(self) -> bool:
        """Whether the class label is part of the condition."""
        return self.condition_type != "mask"


class ControlNetLossConfig(ControlLossSection):
    """ControlNetTrainer."""

    objective: Literal["cross_entropy", "mse_privileged", "mse"] = Field(
        default="cross_entropy",
        description="Hidden tokens (`cross_entropy`); the base's logits when it sees more tokens "
        "(`mse_privileged`); or on the same tokens (`mse`: the literal form, which teaches nothing).",
    )
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing of the cross-entropy.")
    privileged_share: Fraction = Field(
        default=0.5, description="`mse_privileged`: share of the hidden tokens that its teacher sees."
    )


class MaskGiTControlNetLightningConfig(ControlSection):
    """Stage 3, MaskGiT."""

    stage: Literal["maskgit_controlnet"] = Field(default="maskgit_controlnet", description="Stage.")
    inputs: ControlInputsConfig = Field(default=ControlInputsConfig(), description="Earlier stages.")
    model: ControlNetMaskGiTModelConfig = Field(
        default=ControlNetMaskGiTModelConfig(), description="Control network."
    )
    condition: ControlConditionConfig = Field(default=ControlConditionConfig(), description="Condition.")
    loss: ControlNetLossConfig = Field(default=ControlNetLossConfig(), description="Loss.")
    masking: MaskingConfig = Field(default=MaskingConfig(), description="Masking schedule.")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="Sampler.")

    @property
    def seg_key(self) -> str | None:
        """The key that makes the run learn from segmentations; None if it does not."""
        return "condition.condition_type" if self.condition.takes_seg else None

    @model_validator(mode="after")
    def _classes_are_those_of_the_masks(self) -> Self:
        condition = self.condition
        require_known_classes(self.loss, condition)
        if self.data.kind == "medmnist3d" and condition.takes_seg and condition.num_mask_classes != 2:
            raise ValueError(
                "condition.num_mask_classes: expected 2 for data.kind medmnist3d, whose masks are foreground and "
                f"background, got {condition.num_mask_classes}"
            )
        return self


# -- MAISI ----------------------------------------------------------------------------------------


class FlowControlInputsConfig(BaseInputsSection):
    """Checkpoints of earlier stages."""

    diffusion: str | None = Field(default=None, description="Stage-2 run folder or checkpoint: the base.")


class ControlNetRFModelConfig(Section):
    """ControlNetRF; all other sizes are those of the base."""

    kind: Literal["controlnet_rf"] = Field(default="controlnet_rf", description="Picks the adapter.")
    encoder: Literal["condition_encoder", "maisi"] = Field(
        default="condition_encoder",
        description="Encoder of the condition: ours, which keeps small lesions at every scale, or `maisi`, that of "
        "the published networks.",
    )
    channels: Ints = Field(
        default=(16, 32, 64),
        description="Widths of its stages; for `maisi` each after the first halves the sides.",
    )
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    native_ops: bool = Field(default=True, description="Fast operators with the same weights and results.")


class FlowControlConditionConfig(ControlConditionSection):
    """The input of the control network."""

    conditions: Annotated[
        tuple[Literal["mask", "image", "label"], ...], Field(strict=False, min_length=1)
    ] = Field(
        default=("mask",),
        description="Any of segmentation (`mask`), source images (`image`) and class label.",
    )
    seg_planes: Literal["one_hot", "bits"] = Field(
        default="one_hot", description="One plane per class, or MAISI's eight binary digits of its number."
    )
    source_modalities: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="`image`: modalities shown; a target is never shown itself."
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
            raise ValueError(f"conditions: expected each once, got {list(self.conditions)}")
        if ("image" in self.conditions) != bool(self.source_modalities):
            raise ValueError(
                "source_modalities: expected modalities if, and only if, conditions hold `image`, got "
                f"{list(self.source_modalities)} and {list(self.conditions)}"
            )
        return self


class RegionContrastConfig(Section):
    """RegionContrast (MAISI-v2): removing the lesions from the condition changes the lesions and nothing else."""

    weight: NonNegative = Field(default=0.01, description="Weight λ at first.")
    final_weight: NonNegative = Field(default=0.001, description="Weight λ later.")
    switch_fraction: Fraction = Field(default=0.5, description="Share of the steps with the first weight.")
    delta: NonNegative = Field(default=2.0, description="Change inside lesions that is enough.")
    margin: Count = Field(
        default=1, description="Latent positions about a lesion that count as neither side."
    )
    host_class: Count = Field(default=0, description="Class that takes the lesions' place.")


class FlowControlLossConfig(ControlLossSection):
    """ControlNetTrainer."""

    objective: Literal["velocity"] = Field(
        default="velocity", description="Velocity of the controlled base against the true one."
    )
    distance: Literal["l2", "l1"] = Field(default="l2", description="Between them; MAISI's code uses `l1`.")
    control_dropout: Fraction = Field(default=0.0, description="Share of samples trained without control.")
    contrast: RegionContrastConfig | None = Field(
        default=None, description="Region contrast, which doubles the cost of a step; null for none."
    )


class SourceStartConfig(Section):
    """SourceStart: the flow starts at the mean latent of the sources instead of at noise (WFM, arXiv 2604.21146)."""

    noise: NonNegative = Field(
        default=0.1,
        description="Deviation of the noise on top of that mean, in deviations of the latents: samples differ by it.",
    )


class MaisiControlNetConfig(ControlSection):
    """Stage 3, MAISI."""

    stage: Literal["maisi_controlnet"] = Field(default="maisi_controlnet", description="Stage.")
    inputs: FlowControlInputsConfig = Field(default=FlowControlInputsConfig(), description="Earlier stages.")
    model: ControlNetRFModelConfig = Field(default=ControlNetRFModelConfig(), description="Control network.")
    condition: FlowControlConditionConfig = Field(
        default=FlowControlConditionConfig(), description="Condition."
    )
    loss: FlowControlLossConfig = Field(default=FlowControlLossConfig(), description="Loss.")
    sampler: RectifiedFlowSamplerConfig = Field(default=RectifiedFlowSamplerConfig(), description="Sampler.")
    start: SourceStartConfig | None = Field(
        default=None,
        description="Start at the mean of the sources, for translation in 1 or 2 steps; null starts at noise.",
    )

    @property
    def seg_key(self) -> str | None:
        """The key that makes the run learn from segmentations; None if it does not."""
        return "condition.conditions" if self.condition.takes_seg else None

    def _require_start(self) -> None:
        if self.start is None:
            return
        sources = self.condition.source_modalities
        # A target is never its own source, so that of two one is left.
        if len(sources) < 2:
            raise ValueError(
                "start: expected at least two condition.source_modalities to start from, of which a target that is one "
                f"of them leaves the other, got {list(sources) or 'none'}; name more, or set start to null"
            )
        for key, scale in (
            ("sampler.guidance_scale", self.sampler.guidance_scale),
            ("control.control_guidance_scale", self.control.control_guidance_scale),
        ):
            if scale != 0.0:
                raise ValueError(
                    f"{key}: expected 0 with start, since the base alone knows no flow from the sources, got "
                    f"{scale:g}; set it to 0"
                )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        condition, contrast = self.condition, self.loss.contrast
        require_known_classes(self.loss, condition)
        if self.data.kind == "medmnist3d" and (
            condition.source_modalities or (condition.takes_seg and condition.num_mask_classes != 2)
        ):
            raise ValueError(
                "condition: expected mask (with num_mask_classes 2: foreground and background), label or both for "
                f"data.kind medmnist3d, got {condition.condition_type} and {condition.num_mask_classes} classes"
            )
        unknown = [m for m in condition.source_modalities if m not in self.data.modalities]
        if unknown:
            raise ValueError(
                f"condition.source_modalities: expected some of data.modalities {list(self.data.modalities)}, got "
                f"{', '.join(unknown)}"
            )
        self._require_start()
        if self.model.encoder == "maisi" and "label" in condition.conditions:
            raise ValueError(
                "model.encoder: expected condition_encoder for the condition label, which the published encoder "
                "does not take, got maisi"
            )
        if contrast is not None and not (
            condition.takes_seg and contrast.host_class < condition.num_mask_classes
        ):
            raise ValueError(
                "loss.contrast: expected the condition mask and a host_class below condition.num_mask_classes "
                f"({condition.num_mask_classes}), got {condition.condition_type} and {contrast.host_class}"
            )
        return self
