"""The sections and the root of the refiner, which corrects decoded translations with the help of their sources."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from prod9.config.sections import BaseInputsSection, RunSection
from prod9.config.types import Fraction, Ints, NonNegative, Positive, PositiveInt, Section


class RefinerInputsConfig(BaseInputsSection):
    """Checkpoints of earlier stages."""

    transformer: str | None = Field(
        default=None, description="Stage-2b run folder or checkpoint: the translator to refine."
    )


class RefinerModelConfig(Section):
    """Refiner."""

    kind: Literal["refiner"] = Field(default="refiner", description="Picks the adapter.")
    num_classes: PositiveInt = Field(default=4, description="Class labels.")
    num_channels: Ints = Field(default=(32, 64, 128), description="Width of each resolution of the U-Net.")
    num_res_blocks: PositiveInt = Field(
        default=1, description="Blocks per resolution, on the way down and up."
    )
    space_to_depth: PositiveInt = Field(
        default=4, description="Edge of the blocks of voxels that become one position of the U-Net."
    )
    detail_channels: PositiveInt = Field(
        default=16, description="Width of the perceptron at full resolution."
    )
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")


class RefinerLossConfig(Section):
    """RefinerTrainer."""

    reconstruction: Literal["l1", "l2"] = Field(default="l2", description="Distance to the target.")
    background_weight: NonNegative = Field(
        default=0.1, description="Weight of the voxels outside the target's brain."
    )
    region_weight: Positive = Field(
        default=3.0, description="Weight of voxels in any segmented class; 1 weighs all alike."
    )
    fit_weight: NonNegative = Field(
        default=4.0,
        description="Weight of the squared distance left after the best affine map of intensities.",
    )
    decoded_dropout: Fraction = Field(
        default=0.25, description="Share of samples trained with the decoded target zeroed."
    )


class TranslationsConfig(Section):
    """The decoded targets that a refiner is trained on."""

    decode: Literal["mean", "sample"] = Field(
        default="mean", description="Expected codes (`mean`), or one sample of the tokens."
    )
    per_target: PositiveInt = Field(
        default=1, description="Translations made of each target volume, each from a random set of sources."
    )


def require_classes(num_classes: int, label_map: Mapping[str, int]) -> None:
    """Refuse (ValueError) a network with another number of classes than ``label_map`` has labels."""
    wanted = max(label_map.values()) + 1
    if num_classes != wanted:
        raise ValueError(
            f"model.num_classes: expected {wanted}, one more than the largest label of data.label_map, "
            f"got {num_classes}; set it to {wanted}"
        )


class RefinerConfig(RunSection):
    """Refiner of translations, MaskGiT."""

    stage: Literal["refiner"] = Field(default="refiner", description="Stage.")
    inputs: RefinerInputsConfig = Field(default=RefinerInputsConfig(), description="Earlier stages.")
    model: RefinerModelConfig = Field(default=RefinerModelConfig(), description="Network.")
    translations: TranslationsConfig = Field(default=TranslationsConfig(), description="The decoded targets.")
    loss: RefinerLossConfig = Field(default=RefinerLossConfig(), description="Loss.")

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        require_classes(self.model.num_classes, self.data.label_map)
        return self
