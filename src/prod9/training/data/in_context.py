"""BraTSInContextDataModule: a random target and random sources of the same patient, for stage 2b."""

from collections.abc import Sequence

from prod9.config.schema import TransformerConfig
from prod9.data.datasets.in_context import InContextDataset
from prod9.data.splits import Part
from prod9.data.stores.latents import TokenStore
from prod9.generator.modality_processor import PADDING
from prod9.training.data.encoded import EncodedSource
from prod9.training.data.tokens import AbstractBraTSTokenDataModule


class BraTSInContextDataModule(AbstractBraTSTokenDataModule):
    """Tokens of a target, latents of its sources and, by option, of examples from other patients."""

    def build_samples(self, part: Part, store: TokenStore) -> InContextDataset:
        """Return one sample per target volume."""
        patients = [case.patient_id for case in self._cache(part).cases]
        return in_context_samples(self.config, self._encoded, store, patients=patients)


def in_context_samples(
    config: TransformerConfig,
    encoded: EncodedSource,
    store: TokenStore,
    *,
    patients: Sequence[str],
    groups: Sequence[int] | None = None,
) -> InContextDataset:
    """Return the samples that the ``context`` of ``config`` describes.

    Args:
        config: of the run.
        encoded: what codes come from, if sources are codes.
        store: the encoded volumes.
        patients: the patient of each case.
        groups: the group of each case, which its examples come from; None takes all cases as one group.
    """
    settings, num_modalities = config.in_context, config.data.images_per_case
    return InContextDataset(
        store=store,
        codebook=encoded.codebook(store) if settings.source == "codes" else None,
        patients=patients,
        num_modalities=num_modalities,
        num_sources=settings.sources(num_modalities),
        max_examples=settings.max_examples,
        num_slots=settings.slots(num_modalities),
        padding=PADDING,
        seed=config.seed,
        groups=groups,
    )
