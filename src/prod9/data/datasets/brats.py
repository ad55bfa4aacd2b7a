"""BraTS datasets over cached, preprocessed cases.

A key is an ``int`` (evaluation: the item as it is, the same every time) or a
:class:`~prod9.data.sampling.SampleKey` (training: augmented, decided by the seed and the draw).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from prod9.data.preprocessing import CaseVolumes
from prod9.data.sampling import SampleKey, index_of
from prod9.data.stores.cache import CaseCache
from prod9.data.transforms import Stage1Transform


class CachedRandomModalityDataset(Dataset[dict[str, Any]]):
    """One modality of one case a sample, for stage 1.

    Items are (case, modality) pairs, modalities varying fastest; under a shuffled sampler the modality is
    random and each pass still shows every volume exactly once.

    cases: cached cases with volumes in the order of ``modalities``. label_map: class of each modality.
    seed: of the run, for the augmentation.
    """

    def __init__(
        self,
        *,
        cases: CaseCache,
        modalities: Sequence[str],
        label_map: Mapping[str, int],
        transform: Stage1Transform,
        seed: int,
    ) -> None:
        self._cases = cases
        self._modalities = tuple(modalities)
        self._label_map = dict(label_map)
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self._cases) * len(self._modalities)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``image`` float32 [1 H W D], ``label`` int64 scalar, ``modality`` and ``case_id``."""
        index = index_of(key)
        case_index, m = divmod(index, len(self._modalities))
        volume = self._cases[case_index].images[m]
        if isinstance(key, SampleKey):
            image = self._transform(volume, rng=key.rng(self._seed), whole=key.whole)
        else:
            image = self._transform(volume)
        modality = self._modalities[m]
        return {
            "image": image,
            "label": torch.tensor(self._label_map[modality]),
            "modality": modality,
            "case_id": self._cases.cases[case_index].case_id,
        }


class CachedAllModalitiesDataset(Dataset[dict[str, Any]]):
    """All modalities of one case a sample, whole volumes, never augmented: for stage 2 and for evaluation."""

    def __init__(self, *, cases: CaseCache, transform: Callable[[CaseVolumes], dict[str, Any]]) -> None:
        self._cases = cases
        self._transform = transform

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self._cases)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``images`` {modality: float32 [1 H W D]}, ``case_id`` and ``patient_id``.

        Cases with a segmentation have ``seg`` too: canonical labels, int64 [1 H W D].
        """
        index = index_of(key)
        case = self._cases.cases[index]
        return {
            **self._transform(self._cases[index]),
            "case_id": case.case_id,
            "patient_id": case.patient_id,
        }
