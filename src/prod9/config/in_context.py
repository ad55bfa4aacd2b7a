"""The sections of stage 2b: the single-stream decoder and what it is shown in training."""

from typing import Literal

from pydantic import Field, model_validator

from prod9.config.decoders import DecoderSection
from prod9.config.sections import Count, PositiveInt, Section


class SingleStreamModelConfig(DecoderSection):
    """TransformerDecoderSingleStream: any number of sources, in any order, in one sequence with the target."""

    kind: Literal["single_stream"] = Field(default="single_stream", description="Picks the adapter.")
    attention: Literal["prefix", "full"] = Field(
        default="prefix",
        description="`prefix`: sources don't see the target and are cached; `full`: they do, at every step.",
    )
    aligned: bool = Field(
        default=True,
        description="Also add what co-registered sources hold at each position to the target's input.",
    )
    context_stride: PositiveInt = Field(
        default=1,
        description="Positions along each axis that share one element of the context; 2 makes it 8 times shorter.",
    )


class ContextConfig(Section):
    """What a sample of stage 2b is made of: a random target, and random sources of the same patient."""

    source: Literal["latent", "codes"] = Field(
        default="latent", description="Sources before quantisation (`latent`), or as the decoder sees them."
    )
    min_sources: Count = Field(
        default=1, description="Fewest sources of a sample; 0: also from the label alone."
    )
    max_sources: PositiveInt | None = Field(
        default=None, description="Most sources of a sample; null: all other modalities."
    )
    max_examples: Count = Field(
        default=0,
        description="Most other patients shown as examples, each with the target's and the sources' modalities; of "
        "MedMNIST3D, other samples of the class.",
    )

    @model_validator(mode="after")
    def _fewest_below_most(self) -> "ContextConfig":
        if self.max_sources is not None and self.min_sources > self.max_sources:
            raise ValueError(
                f"min_sources ({self.min_sources}) must be at most max_sources ({self.max_sources}); lower it"
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
