"""Stage 1: the autoencoder, its discriminator and its loss, and the root of a run of each family.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

import math
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from prod9.config.sections import RunSection
from prod9.config.types import Bools, Count, Ints, NonNegative, Positive, PositiveInt, Section
from prod9.modalities import LABEL_MAP_CLASSES

# -- networks -------------------------------------------------------------------------------------


class AutoencoderSection(Section):
    """What both autoencoder families have in common."""

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
    front_end: Literal["fold", "haar"] = Field(
        default="fold",
        description="Fold the voxels themselves, or their orthonormal Haar bands; `haar` needs a power of 2 from 2 on.",
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
        """Voxels along each axis that become one position of the latent."""
        return self.space_to_depth * 2 ** (len(self.num_channels) - 1)

    @model_validator(mode="after")
    def _resolutions_agree(self) -> Self:
        check_resolutions(self, "num_res_blocks", "attention_levels")
        return self

    @model_validator(mode="after")
    def _haar_halves(self) -> Self:
        if self.front_end == "haar" and (self.space_to_depth < 2 or self.space_to_depth.bit_count() > 1):
            raise ValueError(
                f"space_to_depth: expected a power of 2 from 2 on for front_end haar, got {self.space_to_depth}; "
                "use 2, or front_end fold"
            )
        return self


def check_resolutions(model: Any, *keys: str) -> None:
    """Refuse ``keys`` of a network that do not match its ``num_channels``, and groups that do not divide them."""
    widths, groups = model.num_channels, model.norm_num_groups
    for key in keys:
        values = getattr(model, key)
        if values is not None and len(values) != len(widths):
            raise ValueError(
                f"{key}: expected one entry per entry of num_channels ({len(widths)}), got {len(values)}"
            )
    if any(width % groups for width in widths):
        raise ValueError(
            f"norm_num_groups: expected a divisor of every entry of num_channels, got {groups} for {list(widths)}; "
            f"use {math.gcd(*widths)}"
        )


class FSQModelConfig(AutoencoderSection):
    """AutoencoderFSQ."""

    kind: Literal["fsq"] = Field(default="fsq", description="Autoencoder family.")
    levels: Ints = Field(default=(8, 8, 8, 6, 5), description="Quantisation levels, one per latent channel.")
    symmetric: bool = Field(default=False, description="Codes over all of [-1, 1] for even levels too.")
    label_maps: bool = Field(
        default=False,
        description="With `data.modalities: [seg]`: channels are classes, and volumes label maps.",
    )

    @model_validator(mode="before")
    @classmethod
    def _channels_are_classes(cls, values: Any) -> Any:
        """Fill in the channels of label maps, which follow from the classes."""
        if isinstance(values, dict) and values.get("label_maps") is True:
            return {"in_channels": LABEL_MAP_CLASSES, "out_channels": LABEL_MAP_CLASSES} | values
        return values

    @model_validator(mode="after")
    def _one_channel_a_class(self) -> Self:
        if self.label_maps and (self.in_channels, self.out_channels) != (
            LABEL_MAP_CLASSES,
            LABEL_MAP_CLASSES,
        ):
            raise ValueError(
                f"in_channels and out_channels: expected {LABEL_MAP_CLASSES}, one per class of a label map, got "
                f"{self.in_channels} and {self.out_channels}; remove them"
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


class Stage1LossSection(Section):
    """VAEGANLoss, without the regularizer of the latent."""

    reconstruction: Literal["l1", "l2", "labels"] = Field(
        default="l1", description="Reconstruction distance; `labels`: cross-entropy and Dice of label maps."
    )
    reconstruction_weight: Positive = Field(default=1.0, description="Its weight.")
    perceptual: PerceptualConfig = Field(default=PerceptualConfig(), description="Perceptual term.")
    adversarial: AdversarialConfig = Field(default=AdversarialConfig(), description="Adversarial term.")


class AutoencoderLossConfig(Stage1LossSection):
    """VAEGANLoss."""

    commitment_weight: NonNegative = Field(
        default=0.0, description="Distance of z to its code; FSQ needs none."
    )
    range_weight: NonNegative = Field(
        default=0.1, description="Penalty on |z| beyond 2, where tanh saturates."
    )


# -- roots ----------------------------------------------------------------------------------------

M = TypeVar("M", bound=AutoencoderSection)
L = TypeVar("L", bound=Stage1LossSection)


class Stage1Config(RunSection, Generic[M, L]):
    """What the roots of both families have in common; a root adds ``stage``."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")

    model: M = Field(description="Autoencoder.")
    loss: L = Field(description="Loss.")
    freeze_encoder: bool = Field(
        default=False,
        description="Train the decoder of `--init-from` alone: latents and tokens stay, and so do models on them.",
    )

    @property
    def needs_start(self) -> bool:
        """Whether a new run has to begin with the weights of another: an encoder that is kept was trained before."""
        return self.freeze_encoder

    @model_validator(mode="after")
    def _sides_fit_the_downsampling(self) -> Self:
        factor = self.model.downsampling_factor
        sides = {"data.grid": self.data.grid, "data.crop_size": self.data.crop_size}
        if self.sliding_window.strategy == "sliding_window":
            sides["sliding_window.roi_size"] = self.sliding_window.roi_size
        wrong = [
            f"{key}: expected multiples of the model's downsampling factor {factor} on each axis, "
            f"got {list(value)}; use {[max(factor, -(-side // factor) * factor) for side in value]}"
            for key, value in sides.items()
            if value is not None and any(side < 1 or side % factor for side in value)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _label_maps_agree(self) -> Self:
        label_maps = getattr(self.model, "label_maps", False)
        told = {
            "data.modalities": self.data.shows_labels,
            "model.label_maps": label_maps,
            "loss.reconstruction": self.loss.reconstruction == "labels",
        }
        if len(set(told.values())) > 1:
            yes, no = (", ".join(key for key, value in told.items() if value is one) for one in (True, False))
            raise ValueError(
                "data.modalities, model.label_maps and loss.reconstruction: expected [seg], true and labels for label "
                f"maps, or none of them for scans, got label maps in {yes} and scans in {no}; see the config "
                "demo/masks_stage1"
            )
        others = [
            key
            for key, value in {
                "loss.adversarial.weight": self.loss.adversarial.weight,
                "loss.perceptual.weight": self.loss.perceptual.weight,
            }.items()
            if value
        ]
        if label_maps and others:
            raise ValueError(
                f"{' and '.join(others)}: expected 0 for label maps, which have no texture, got more; set it to 0"
            )
        return self


class AutoencoderConfig(Stage1Config[FSQModelConfig, AutoencoderLossConfig]):
    """Stage 1, MaskGiT."""

    takes_label_maps: ClassVar[bool] = True

    stage: Literal["autoencoder"] = Field(default="autoencoder", description="Stage.")
    model: FSQModelConfig = Field(default=FSQModelConfig(), description="Autoencoder.")
    loss: AutoencoderLossConfig = Field(default=AutoencoderLossConfig(), description="Loss.")

    @property
    def variant(self) -> str:
        """Which recipe trains it: that of scans, or that of label maps."""
        return "label_maps" if self.model.label_maps else "scans"
