"""The ``model`` sections of the decoders of stage 2."""

from typing import Literal

from pydantic import Field, model_validator

from prod9.config.sections import Fraction, Positive, PositiveInt, Section


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
    dropout: Fraction = Field(default=0.1, description="Dropout in attention output and MLP.")
    num_bands: PositiveInt | None = Field(
        default=None, description="Frequency bands per axis; null: as many as fit."
    )
    num_classes: PositiveInt = Field(default=4, description="Class labels.")
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "DecoderSection":
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim ({self.embed_dim}) must be a multiple of num_heads ({self.num_heads}); "
                f"use {max(self.num_heads, self.embed_dim // self.num_heads * self.num_heads)}"
            )
        return self


class LabelConditionalModelConfig(DecoderSection):
    """TransformerDecoder conditioned on the class label alone."""

    kind: Literal["label_conditional"] = Field(default="label_conditional", description="Picks the adapter.")


class DecoderModelConfig(DecoderSection):
    """TransformerDecoder conditioned on the target label and the latent of a co-registered source."""

    kind: Literal["decoder"] = Field(default="decoder", description="Picks the adapter.")
