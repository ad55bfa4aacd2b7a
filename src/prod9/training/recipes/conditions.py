"""What each kind of decoder is conditioned on, from a batch of its data module."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.modality_processor import InContextCondition
from prod9.training.batches import InContextBatch, TokenBatch, TranslationBatch

Condition = MaskGiTCondition | InContextCondition
"""What the decoders of stage 2 are conditioned on."""


def of_label(batch: TokenBatch) -> MaskGiTCondition:
    """Return the class labels of the batch and, where there are some, its covariates."""
    return MaskGiTCondition(label=batch["label"], covariates=batch.get("covariates"))


def of_source(batch: TranslationBatch) -> MaskGiTCondition:
    """Return the target's label, and label and latent of the co-registered source."""
    return MaskGiTCondition(
        label=batch["label"], source_latent=batch["source_latent"], source_label=batch["source_label"]
    )


def in_context(batch: InContextBatch) -> InContextCondition:
    """Return the target's label, and label and latent of each source."""
    return InContextCondition(
        target_label=batch["label"],
        source_labels=batch["source_labels"],
        source_latents=batch["source_latents"],
        co_registered=batch["co_registered"],
    )


CONDITIONS: Mapping[str, Callable[[Any], Condition]] = MappingProxyType(
    {"label_conditional": of_label, "decoder": of_source, "single_stream": in_context}
)
"""By ``model.kind`` of the decoder."""
