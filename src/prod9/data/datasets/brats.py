"""BraTS datasets over cached, preprocessed cases.

A key is an ``int`` (evaluation: the item without augmentation) or a :class:`~prod9.data.sampling.SampleKey` (training:
augmented, as the seed and the draw determine).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from prod9.data.preprocessing import CaseVolumes
from prod9.data.sampling import SampleKey, index_of
from prod9.data.stores.cache import CaseCache
from prod9.data.transforms import Stage1Transform


@dataclass(kw_only=True, eq=False, repr=False)
class CachedRandomModalityDataset(Dataset[dict[str, Any]]):
    """One modality of one case per sample, for stage 1.

    Items are (case, modality) pairs, of which the modality varies fastest. A shuffling sampler makes the modality
    random, and each pass still shows every volume exactly once.

    Attributes:
        cases: cached cases with volumes in the order of ``modalities``.
        modalities: names.
        label_map: class of each modality.
        transform: from cached volumes to samples.
        seed: of the run, for the augmentation.
    """

    cases: CaseCache
    modalities: Sequence[str]
    label_map: Mapping[str, int]
    transform: Stage1Transform
    seed: int

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.cases) * len(self.modalities)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``image`` float32 [1 H W D], ``label`` int64 scalar, ``modality`` and ``case_id``."""
        index = index_of(key)
        case_index, m = divmod(index, len(self.modalities))
        volume = self.cases[case_index].images[m]
        if isinstance(key, SampleKey):
            image = self.transform(volume, rng=key.rng(self.seed), whole=key.whole)
        else:
            image = self.transform(volume)
        modality = self.modalities[m]
        return {
            "image": image,
            "label": torch.tensor(self.label_map[modality]),
            "modality": modality,
            "case_id": self.cases.cases[case_index].case_id,
        }


@dataclass(kw_only=True, eq=False, repr=False)
class CachedAllModalitiesDataset(Dataset[dict[str, Any]]):
    """All modalities of one case per sample, as whole volumes without augmentation, for evaluation."""

    cases: CaseCache
    transform: Callable[[CaseVolumes], dict[str, Any]]

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``images`` {modality: float32 [1 H W D]}, ``case_id`` and ``patient_id``.

        Cases with a segmentation also have ``seg``: canonical labels, int64 [1 H W D].
        """
        index = index_of(key)
        case = self.cases.cases[index]
        return {
            **self.transform(self.cases[index]),
            "case_id": case.case_id,
            "patient_id": case.patient_id,
        }
