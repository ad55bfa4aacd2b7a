"""BraTSRefinerDataModule: translations of the scans of a cohort, with their sources and the scans themselves."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prod9.config.schema import RefinerConfig
from prod9.data.datasets.refiner import RefinerDataset, TranslationItem
from prod9.data.preprocessing import dequantise
from prod9.data.splits import Part, Split
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.translations import VolumeStore, content_key
from prod9.errors import ConfigError
from prod9.system.progress import Progress
from prod9.training.data.brats import AbstractBraTSDataModule


class TranslatesScans(Protocol):
    """A trained model that translates scans, such as ``recipes.translator.Translator``."""

    @property
    def split(self) -> Split:
        """The split of the run that trained it."""
        ...

    @property
    def num_sources(self) -> range:
        """How many sources a translation may have."""
        ...

    @property
    def settings(self) -> Sequence[str]:
        """Everything that a translation depends on, apart from its sources and seed."""
        ...

    def __call__(self, sources: dict[str, np.ndarray], target: str, *, seed: int) -> np.ndarray:
        """Return the decoded target ``[H W D]`` in [0, 1] from ``sources`` of one patient, ``[H W D]`` each."""
        ...


class BraTSRefinerDataModule(AbstractBraTSDataModule):
    """Translates every scan once from random subsets of the patient's other scans, and keeps the results.

    The refiner is trained on translations, not on reconstructions of the target, which do not exist when it is used.
    It is trained on patients that the translator was trained on, too.
    """

    def __init__(
        self, config: RefinerConfig, *, translator: TranslatesScans, progress: Progress | None = None
    ) -> None:
        super().__init__(config, reads_images=True, progress=progress)
        self.config: RefinerConfig = config
        fewest = translator.num_sources[0]
        if len(config.data.modalities) <= fewest:
            raise ConfigError(
                f"data.modalities: expected at least {fewest + 1}, a target and the sources that inputs.transformer "
                f"takes, got {', '.join(config.data.modalities)}; add one."
            )
        self._translator = translator

    def build_dataset(self, part: Part) -> RefinerDataset:
        """Return the translated scans of the patients of ``part``."""
        self.require_held_out(self._translator.split, base="a translator")
        cases = self._cache(part)
        items, store = self._items(cases), VolumeStore(self.config.store_dir / part)
        self._fill(store, items, cases, part)
        self._builder.hashes.save()
        data = self.config.data
        return RefinerDataset(
            cases=cases,
            items=items,
            store=store,
            modalities=data.modalities,
            label_map=data.label_map,
            num_classes=self.config.model.num_classes,
            crop_size=data.crop_size,
            flip_prob=data.augment.flip_prob,
            seed=self.config.seed,
        )

    def _items(self, cases: CaseCache) -> list[TranslationItem]:
        names = self.config.data.modalities
        items = []
        for number, case in enumerate(cases.cases):
            content = self._builder.case_key(case)
            for target in range(len(names)):
                for copy in range(self.config.translations.per_target):
                    # Seeds depend on the content, not on the position, so a longer cohort keeps its translations.
                    seed = int(content_key(content, names[target], copy, self.config.seed)[:12], 16)
                    sources = self._draw(target, np.random.default_rng(seed))
                    wanted = [names[m] for m in sources]
                    key = content_key(content, names[target], wanted, seed, *self._translator.settings)
                    items.append(TranslationItem(key, number, target, sources, seed))
        return items

    def _draw(self, target: int, rng: np.random.Generator) -> tuple[int, ...]:
        others = [m for m in range(len(self.config.data.modalities)) if m != target]
        most = min(self._translator.num_sources[-1], len(others))
        count = int(rng.integers(self._translator.num_sources[0], most + 1))
        return tuple(sorted(rng.permutation(others)[:count].tolist()))

    def _fill(
        self, store: VolumeStore, items: Sequence[TranslationItem], cases: CaseCache, part: Part
    ) -> None:
        by_key = {item.key: item for item in items}

        def make(key: str) -> Tensor:
            item, names = by_key[key], self.config.data.modalities
            images = cases[item.case].images
            sources = {names[m]: dequantise(images[m]).numpy() for m in item.sources}
            return torch.from_numpy(self._translator(sources, names[item.target], seed=item.seed))[None]

        with self.report(f"Translating {part} volumes") as progress:
            # Other runs may read a store that the config names.
            store.fill(by_key, make, progress=progress, keep_others=self.config.data.store_dir is not None)
