"""Samples of a target with sources of the same patient and examples from others: what stage 2b is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.datasets.tokens import token_sample
from prod9.data.sampling import SampleKey
from prod9.data.stores.latents import TokenStore

_EVALUATION = 1
"""Keeps the random stream of evaluation apart from those of training."""


@dataclass(kw_only=True, eq=False, repr=False)
class InContextDataset(Dataset[dict[str, Any]]):
    """One target per sample, with a random subset of the other modalities in random order, mirrored alike.

    A SampleKey seeds the draw of sources and examples; an int draws the same ones every time.

    Attributes:
        store: blocks of ``num_modalities`` rows, one block per case and mirroring.
        codebook: float32 ``[Z V]``, the code of each token, for sources as codes; None takes their latents.
        patients: the patient of each case.
        num_modalities: modalities of a case.
        num_sources: how many sources a sample may have.
        max_examples: most other patients per sample, each shown in the modalities of the target and its sources.
        num_slots: sources that a sample has room for, those of examples included.
        padding: label of slots without a source.
        seed: of the run.
        groups: the group of each case, which its examples come from; None takes all cases as one group.
    """

    store: TokenStore
    codebook: Tensor | None
    patients: Sequence[str]
    num_modalities: int
    num_sources: range
    max_examples: int
    num_slots: int
    padding: int
    seed: int
    groups: Sequence[int] | None = None

    def __post_init__(self) -> None:
        copies = len(self.store) // (self.num_modalities * len(self.patients))
        groups = np.zeros(len(self.patients)) if self.groups is None else np.asarray(self.groups)
        self._groups = np.repeat(groups, copies)
        self._patients = np.repeat(np.asarray(self.patients), copies)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return the target as in :func:`token_sample`, and what the slots hold.

        ``source_labels`` int64 [S], ``source_latents`` float32 [S Z h w d], and ``co_registered`` bool [S], False for
        what comes from other patients.
        """
        if isinstance(key, SampleKey):
            index, rng = key.index, key.rng(self.seed)
        else:
            index, rng = key, np.random.default_rng((self.seed, _EVALUATION, key))
        latents = torch.zeros(self.num_slots, *self._held(index).shape)
        labels = torch.full((self.num_slots,), self.padding)
        co_registered = torch.ones(self.num_slots, dtype=torch.bool)
        for slot, (row, near) in enumerate(self._draw(index, rng)):
            labels[slot], latents[slot] = self.store.describe(row)["label"], self._held(row)
            co_registered[slot] = near
        return {
            **token_sample(self.store, index),
            "source_labels": labels,
            "source_latents": latents,
            "co_registered": co_registered,
        }

    def _draw(self, index: int, rng: np.random.Generator) -> list[tuple[int, bool]]:
        """Return rows of the store and whether they are co-registered: sources first, then examples."""
        block, place = divmod(index, self.num_modalities)
        others = rng.permutation([m for m in range(self.num_modalities) if m != place])
        chosen = others[: rng.integers(self.num_sources[0], self.num_sources[-1] + 1)].tolist()
        rows = [(block * self.num_modalities + m, True) for m in chosen]
        for other in self._other_patients(block, rng):
            rows += [(other * self.num_modalities + m, False) for m in (place, *chosen)]
        return rows

    def _other_patients(self, block: int, rng: np.random.Generator) -> list[int]:
        count = int(rng.integers(self.max_examples + 1))
        if count == 0:
            return []
        alike = self._groups == self._groups[block]
        others = np.flatnonzero(alike & (self._patients != self._patients[block]))
        return rng.permutation(others)[:count].tolist()

    def _held(self, row: int) -> Tensor:
        if self.codebook is None:
            return self.store.latent(row)
        return self.codebook[:, self.store[row]["indices"]]
