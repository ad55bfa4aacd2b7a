"""BraTSInContextDataModule: a random target and random sources of the same patient, for stage 2b."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.config.schema import ContextConfig, TransformerConfig
from prod9.data.sampling import SampleKey
from prod9.data.splits import Part, Split
from prod9.data.stores.latents import Encode, ParallelEncode, TokenStore
from prod9.generator.modality_processor import PADDING
from prod9.training.data.brats import AbstractBraTSDataModule
from prod9.training.data.module import Progress
from prod9.training.data.tokens import BraTSTokens

_EVALUATION = 1
"""Sets the random stream of evaluation apart from those of training draws."""


class BraTSInContextDataModule(AbstractBraTSDataModule):
    """Tokens of a target, latents of its sources and, by option, of examples from other patients.

    encode, indices_to_codes, encoder_hash, upstream_split: see
    :class:`~prod9.training.data.tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        encode: Encode | ParallelEncode | None = None,
        indices_to_codes: Callable[[Tensor], Tensor] | None = None,
        encoder_hash: str | None = None,
        upstream_split: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, progress=progress)
        self._settings = config.in_context
        self._tokens = BraTSTokens(
            config,
            builder=self._builder,
            encode=encode,
            indices_to_codes=indices_to_codes,
            encoder_hash=encoder_hash,
            upstream_split=upstream_split,
        )

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the encoded volumes of the patients of ``part``."""
        cases = self._cache(part)
        store, codebook = self._tokens.build(part, cases, self.split, self._report)
        samples = InContextDataset(
            store,
            codebook,
            patients=[case.patient_id for case in cases.cases],
            num_modalities=self.config.data.images_per_case,
            settings=self._settings,
            seed=self.config.seed,
        )
        return self._with_regions(part, samples)


class InContextDataset(Dataset[dict[str, Any]]):
    """One target a sample, with a random subset of the other modalities in random order, mirrored alike.

    The store lists blocks of ``num_modalities`` rows, one block a case and mirroring. A SampleKey seeds the
    draw of sources and examples; an int draws the same ones every time. patients: of each case. groups: of each
    case: examples are of the target's own group; None for one group of all.
    """

    def __init__(
        self,
        store: TokenStore,
        codebook: Tensor,
        *,
        patients: Sequence[str],
        num_modalities: int,
        settings: ContextConfig,
        seed: int,
        groups: Sequence[int] | None = None,
    ) -> None:
        self._store = store
        self._codebook = codebook
        self._num_modalities = num_modalities
        self._settings = settings
        self._seed = seed
        copies = len(store) // (num_modalities * len(patients))
        self._patients = np.repeat(np.asarray(patients), copies)
        self._groups = np.repeat(np.zeros(len(patients)) if groups is None else np.asarray(groups), copies)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return a sample.

        ``label``, ``target_indices``, ``foreground`` [h w d], ``source_labels`` [N] (-1: none),
        ``source_latents`` [N Z h w d], ``co_registered`` [N] …
        """
        if isinstance(key, SampleKey):
            index, rng = key.index, key.rng(self._seed)
        else:
            index, rng = key, np.random.default_rng((self._seed, _EVALUATION, key))
        target, rows = self._store[index], self._draw(index, rng)
        sources = [(self._store[row]["label"], self._held(row), near) for row, near in rows]
        latents = torch.zeros(self._settings.slots(self._num_modalities), *self._held(index).shape)
        labels = torch.full((len(latents),), PADDING)
        co_registered = torch.ones(len(latents), dtype=torch.bool)
        for slot, (label, held, near) in enumerate(sources):
            labels[slot], latents[slot], co_registered[slot] = label, held, near
        return {
            "label": torch.tensor(target["label"]),
            "target_indices": target["indices"],
            "foreground": target["foreground"],
            "source_labels": labels,
            "source_latents": latents,
            "co_registered": co_registered,
            "case_id": target["case_id"],
            "flipped": target["flipped"],
            "modality": target["modality"],
        }

    def _draw(self, index: int, rng: np.random.Generator) -> list[tuple[int, bool]]:
        """Return rows of the store and whether they are co-registered: sources, then examples."""
        block, place = divmod(index, self._num_modalities)
        counts = self._settings.sources(self._num_modalities)
        others = rng.permutation([m for m in range(self._num_modalities) if m != place])
        chosen = others[: rng.integers(counts[0], counts[-1] + 1)].tolist()
        rows = [(block * self._num_modalities + m, True) for m in chosen]
        for other in self._other_patients(block, rng):
            rows += [(other * self._num_modalities + m, False) for m in (place, *chosen)]
        return rows

    def _other_patients(self, block: int, rng: np.random.Generator) -> list[int]:
        count = int(rng.integers(self._settings.max_examples + 1))
        if count == 0:
            return []
        alike = self._groups == self._groups[block]
        others = np.flatnonzero(alike & (self._patients != self._patients[block]))
        return rng.permutation(others)[:count].tolist()

    def _held(self, row: int) -> Tensor:
        if self._settings.source == "latent":
            return self._store.latent(row)
        return self._codebook[:, self._store[row]["indices"]]
