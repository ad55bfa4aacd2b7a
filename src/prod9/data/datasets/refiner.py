"""Samples of a soft volume with its sources and the real scan: what a refiner and a detail flow are trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from prod9.data.preprocessing import dequantise
from prod9.data.sampling import SampleKey, index_of
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.translations import VolumeStore
from prod9.data.transforms import Pair, PairTransform


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
    """One translation per sample with its sources and the scan; a SampleKey asks for a random change of them.

    Attributes:
        cases: the scans.
        items: the translations.
        store: the decoded volumes, by the key of the item.
        modalities: names in the order of a case's images.
        label_map: class of each modality, its slot among the sources.
        num_classes: number of slots.
        transform: crops and changes training samples.
        seed: of the run.
        clean: key by case and modality of the scans without noise in the store; None without them.
    """

    cases: CaseCache
    items: Sequence[TranslationItem]
    store: VolumeStore
    modalities: Sequence[str]
    label_map: Mapping[str, int]
    num_classes: int
    transform: PairTransform
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
        pair = self._pair(item, key)
        present = torch.zeros(self.num_classes, dtype=torch.bool)
        for m in item.sources:
            present[self.label_map[self.modalities[m]]] = True
        decoded, true, *clean = pair.images.split(1)
        return {
            **({} if self.clean is None else {"clean": clean[0]}),
            "decoded": decoded,
            "sources": pair.sources,
            "present": present,
            # The refiner works on these voxels alone, and a GPU would have to be asked for their number.
            "head_voxels": (pair.sources > 0).any(0).sum() if item.sources else torch.tensor(decoded.numel()),
            "target": true,
            "region": pair.region,
            "label": torch.tensor(self.label_map[target]),
            "case_id": self.cases.cases[item.case].case_id,
            "modality": target,
        }

    def _pair(self, item: TranslationItem, key: int | SampleKey) -> Pair:
        """Return the volumes of ``item``; images are the soft one, the scan and, where it is kept, without noise."""
        case = self.cases[item.case]
        window, change = (slice(None),) * 3, None
        if isinstance(key, SampleKey):
            window, change = self.transform.draw(case.images.shape[1:], key.rng(self.seed))
        cut = (..., *window)
        images = [self.store[item.key][cut], dequantise(case.images[item.target][cut])[None]]
        if self.clean is not None:
            images.append(self.store[self.clean[item.case][item.target]][cut])
        sources = torch.zeros(self.num_classes, *images[0].shape[1:])
        for m in item.sources:
            sources[self.label_map[self.modalities[m]]] = dequantise(case.images[m][cut])
        region = torch.zeros(images[0].shape, dtype=torch.bool)
        if case.seg is not None:
            region = torch.from_numpy(case.seg[cut] > 0)[None]
        pair = Pair(images=torch.cat(images), sources=sources, region=region)
        return pair if change is None else change(pair)
