"""BraTSRefinerDataModule: translations of a cohort's own scans, beside their sources and the scans themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.config.schema import RefinerConfig, RefinerModelConfig
from prod9.data.preprocessing import dequantise
from prod9.data.sampling import SampleKey
from prod9.data.splits import Part, Split
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.translations import VolumeStore, content_key
from prod9.errors import ConfigError
from prod9.training.data.brats import AbstractBraTSDataModule
from prod9.training.data.module import Progress


class TranslatesScans(Protocol):
    """What makes the decoded targets; see ``recipes.translator.Translator``."""

    @property
    def split(self) -> Split:
        """The patients it was trained on and not."""
        ...

    @property
    def num_sources(self) -> range:
        """How many sources a translation may have."""
        ...

    @property
    def settings(self) -> Sequence[str]:
        """All that a translation depends on beside its sources and seed."""
        ...

    def __call__(self, sources: dict[str, np.ndarray], target: str, *, seed: int) -> np.ndarray:
        """Return the decoded target ``[H W D]`` in [0, 1] of ``sources``, ``[H W D]`` each, of one patient."""
        ...


@dataclass(frozen=True)
class _Item:
    """A translation: its key in the store, the case, and which modalities (places in ``data.modalities``)."""

    key: str
    case: int
    target: int
    sources: tuple[int, ...]
    seed: int


class BraTSRefinerDataModule(AbstractBraTSDataModule):
    """Translates every scan from random subsets of the patient's others, once, and keeps the results.

    They are translations, not reconstructions: a refiner that learnt from those would trust a decoded target
    that nobody has. The patients are those that the translator was trained on, and no others are trained on.
    """

    def __init__(
        self, config: RefinerConfig, *, translator: TranslatesScans, progress: Progress | None = None
    ) -> None:
        super().__init__(config, progress=progress)
        fewest = translator.num_sources[0]
        if len(config.data.modalities) <= fewest:
            raise ConfigError(
                f"data.modalities: expected at least {fewest + 1}, a target and the sources that inputs.transformer "
                f"takes, got {', '.join(config.data.modalities)}; add one."
            )
        self._translator = translator
        self._settings = config.translations
        self._directory = config.store_dir

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the translated scans of the patients of ``part``."""
        _check_leak(self.split, self._translator.split)
        cases = self._cache(part)
        items, store = self._items(cases), VolumeStore(self._directory / part)
        self._fill(store, items, cases, part)
        self._builder.hashes.save()
        data = self.config.data
        return _RefinerDataset(
            cases,
            items,
            store,
            modalities=data.modalities,
            label_map=data.label_map,
            num_classes=cast(RefinerModelConfig, self.config.model).num_classes,
            crop_size=data.crop_size,
            flip_prob=data.augment.flip_prob,
            seed=self.config.seed,
        )

    def _items(self, cases: CaseCache) -> list[_Item]:
        names, settings = self.config.data.modalities, self._settings
        items = []
        for number, case in enumerate(cases.cases):
            content = self._builder.case_key(case)
            for target in range(len(names)):
                for copy in range(settings.per_target):
                    # From the content, not from its place: a longer cohort keeps what is translated.
                    seed = int(content_key(content, names[target], copy, self.config.seed)[:12], 16)
                    sources = self._draw(target, np.random.default_rng(seed))
                    wanted = [names[m] for m in sources]
                    key = content_key(content, names[target], wanted, seed, *self._translator.settings)
                    items.append(_Item(key, number, target, sources, seed))
        return items

    def _draw(self, target: int, rng: np.random.Generator) -> tuple[int, ...]:
        others = [m for m in range(len(self.config.data.modalities)) if m != target]
        most = min(self._translator.num_sources[-1], len(others))
        count = int(rng.integers(self._translator.num_sources[0], most + 1))
        return tuple(sorted(rng.permutation(others)[:count].tolist()))

    def _fill(self, store: VolumeStore, items: Sequence[_Item], cases: CaseCache, part: Part) -> None:
        by_key = {item.key: item for item in items}

        def make(key: str) -> Tensor:
            item, names = by_key[key], self.config.data.modalities
            images = cases[item.case].images
            sources = {names[m]: dequantise(images[m]).numpy() for m in item.sources}
            return torch.from_numpy(self._translator(sources, names[item.target], seed=item.seed))[None]

        with self._report(f"Translating {part} volumes") as progress:
            # A store that was named may be read by other runs, too.
            store.fill(by_key, make, progress=progress, keep_others=self.config.data.store_dir is not None)


class _RefinerDataset(Dataset[dict[str, Any]]):
    """One translation a sample with its sources and the scan; a SampleKey mirrors and crops all of them alike."""

    def __init__(
        self,
        cases: CaseCache,
        items: Sequence[_Item],
        store: VolumeStore,
        *,
        modalities: Sequence[str],
        label_map: dict[str, int],
        num_classes: int,
        crop_size: tuple[int, int, int] | None,
        flip_prob: float,
        seed: int,
    ) -> None:
        self._cases = cases
        self._items = items
        self._store = store
        self._modalities = modalities
        self._labels = [label_map[name] for name in modalities]
        self._num_classes = num_classes
        self._crop_size = crop_size
        self._flip_prob = flip_prob
        self._seed = seed

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``decoded`` and ``target`` [1 H W D], ``sources`` [K H W D], ``present`` [K], ``region`` …

        ``region``, bool [1 H W D], is where the case's segmentation has any class; nowhere without one.
        """
        item = self._items[key.index if isinstance(key, SampleKey) else key]
        case = self._cases[item.case]
        images = case.images
        window, flip = self._draw(key, images.shape[1:])

        def prepared(volume: Tensor) -> Tensor:
            cut = volume[(..., *window)]
            return cut.flip(-3) if flip else cut

        sources = torch.zeros(self._num_classes, *(axis.stop - axis.start for axis in window))
        present = torch.zeros(len(sources), dtype=torch.bool)
        for m in item.sources:
            sources[self._labels[m]] = prepared(dequantise(images[m]))
            present[self._labels[m]] = True
        labels = np.zeros(images.shape[1:], np.uint8) if case.seg is None else case.seg
        return {
            "decoded": prepared(self._store[item.key]),
            "sources": sources,
            "present": present,
            "target": prepared(dequantise(images[item.target]))[None],
            "region": prepared(torch.from_numpy(labels > 0))[None],
            "label": torch.tensor(self._labels[item.target]),
            "case_id": self._cases.cases[item.case].case_id,
            "modality": self._modalities[item.target],
        }

    def _draw(self, key: int | SampleKey, sides: Sequence[int]) -> tuple[list[slice], bool]:
        """Return where to crop and whether to mirror; an int takes all as it is."""
        if not isinstance(key, SampleKey):
            return [slice(0, side) for side in sides], False
        rng = key.rng(self._seed)
        flip = bool(rng.random() < self._flip_prob)
        wanted = [min(c, side) for c, side in zip(self._crop_size or sides, sides, strict=True)]
        starts = [int(rng.integers(side - c + 1)) for side, c in zip(sides, wanted, strict=True)]
        return [slice(start, start + c) for start, c in zip(starts, wanted, strict=True)], flip


def _check_leak(split: Split, upstream: Split) -> None:
    """Refuse to hold out patients that the translator was trained on (ConfigError)."""
    leaked = split.trained_elsewhere(upstream)
    if leaked:
        raise ConfigError(
            "data.split: expected patients to be held out in all stages, but the translator was trained on "
            f"{len(leaked)} that this run holds out ({', '.join(leaked[:5])}); use the same data.split, or set "
            "data.split.file to the split.json of the translator's run."
        )
