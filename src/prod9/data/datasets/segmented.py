"""Samples of encoded volumes with the segmentations of their cases."""

from typing import Any

import torch
from torch.utils.data import Dataset

from prod9.data.sampling import SampleKey
from prod9.data.stores.segmentations import Segmentations


class SegmentedSamples(Dataset[dict[str, Any]]):
    """``samples``, each with ``seg`` uint8 [H W D] and ``has_seg`` of its case, mirrored alike.

    Args:
        samples: of whole volumes, with ``case_id`` and ``flipped``.
        segmentations: by case.
    """

    def __init__(self, samples: Dataset[dict[str, Any]], segmentations: Segmentations) -> None:
        self._samples = samples
        self._segmentations = segmentations

    def __len__(self) -> int:
        return len(self._samples)  # type: ignore[arg-type]  # all our datasets have a length

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        sample = self._samples[key]  # type: ignore[index]  # a key of the sampler is no int
        case_id = sample["case_id"]
        seg = self._segmentations[case_id]
        return {
            **sample,
            "seg": seg.flip(0) if sample["flipped"] else seg,
            "has_seg": torch.tensor(self._segmentations.has(case_id)),
        }
