"""Samples of a soft volume with its sources and the real scan: what a refiner and a detail flow are trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.preprocessing import dequantise
from prod9.data.sampling import SampleKey, index_of
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.translations import VolumeStore


@dataclass(frozen=True)
class TranslationItem:
    """One translation, or reconstruction, of a scan of a case.

    Attributes:
        key: of the decoded volume in the store.
        case: place of the case among the cases.
        target: place of the target among the modalities.
        sources: places of the sources among the modalities.
        seed: of the translation.
    """

    key: str
    case: int
    target: int
    sources: tuple[int, ...]
    seed: int


@dataclass(kw_only=True, eq=False, repr=False)
class RefinerDataset(Dataset[dict[str, Any]]):
    """One translation per sample with its sources and the scan; a SampleKey mirrors and crops all of them alike.

    Attributes:
        cases: the scans.
        items: the translations.
        store: the decoded volumes, by the key of the item.
        modalities: names in the order of a case's images.
        label_map: class of each modality, its slot among the sources.
        num_classes: number of slots.
        crop_size: voxels of a training crop; None takes whole volumes.
        flip_prob: share of training samples that are mirrored.
        seed: of the run.
        clean: key by case and modality of the scans without noise in the store; None without them.
    """

    cases: CaseCache
    items: Sequence[TranslationItem]
    store: VolumeStore
    modalities: Sequence[str]
    label_map: Mapping[str, int]
    num_classes: int
    crop_size: tuple[int, int, int] | None
    flip_prob: float
    seed: int
    clean: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``decoded`` and ``target`` [1 H W D], ``sources`` [K H W D], ``present`` [K], ``region`` and names.

        ``region``, bool [1 H W D], is where the case's segmentation has any class; nowhere without one. ``clean``
        [1 H W D], where it is kept, is the target without noise. ``head_voxels`` [] is how many voxels show a source.
        """
        item = self.items[index_of(key)]
        target = self.modalities[item.target]
        case = self.cases[item.case]
        images = case.images
        window, flip = self._draw(key, images.shape[1:])

        def prepared(volume: Tensor) -> Tensor:
            cut = volume[(..., *window)]
            return cut.flip(-3) if flip else cut

        sources = torch.zeros(self.num_classes, *(axis.stop - axis.start for axis in window))
        present = torch.zeros(len(sources), dtype=torch.bool)
        for m in item.sources:
            slot = self.label_map[self.modalities[m]]
            sources[slot], present[slot] = prepared(dequantise(images[m])), True
        labels = np.zeros(images.shape[1:], np.uint8) if case.seg is None else case.seg
        more = (
            {} if self.clean is None else {"clean": prepared(self.store[self.clean[item.case][item.target]])}
        )
        return {
            **more,
            "decoded": prepared(self.store[item.key]),
            "sources": sources,
            "present": present,
            # The refiner works on these voxels alone, and a GPU would have to be asked for their number.
            "head_voxels": (sources > 0).any(0).sum() if present.any() else torch.tensor(sources[0].numel()),
            "target": prepared(dequantise(images[item.target]))[None],
            "region": prepared(torch.from_numpy(labels > 0))[None],
            "label": torch.tensor(self.label_map[target]),
            "case_id": self.cases.cases[item.case].case_id,
            "modality": target,
        }

    def _draw(self, key: int | SampleKey, sides: Sequence[int]) -> tuple[list[slice], bool]:
        """Return the crop and whether to mirror it; an int takes the whole volume as it is."""
        if not isinstance(key, SampleKey):
            return [slice(0, side) for side in sides], False
        rng = key.rng(self.seed)
        flip = bool(rng.random() < self.flip_prob)
        wanted = [min(c, side) for c, side in zip(self.crop_size or sides, sides, strict=True)]
        starts = [int(rng.integers(side - c + 1)) for side, c in zip(sides, wanted, strict=True)]
        return [slice(start, start + c) for start, c in zip(starts, wanted, strict=True)], flip
