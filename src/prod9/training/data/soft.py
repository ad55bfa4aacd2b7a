"""AbstractSoftDataModule: a soft volume of every scan, with its sources and the scan itself.

Soft volumes are slow to make, so each is made once and kept.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from prod9.config.schema import (
    DetailConfig,
    MaisiDetailConfig,
    RefinerConfig,
    TranslationDetailConfig,
)
from prod9.data.datasets.refiner import RefinerDataset, TranslationItem
from prod9.data.preprocessing import dequantise
from prod9.data.splits import Part, Split
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.translations import VolumeStore, content_key
from prod9.errors import ConfigError
from prod9.measures.denoise import denoised
from prod9.system.progress import Progress
from prod9.training.data.brats import AbstractBraTSDataModule


class MakesSoft(Protocol):
    """A trained model that makes soft volumes of scans, or of other scans of the patient."""

    @property
    def split(self) -> Split:
        """The split of the run that trained it."""
        ...

    @property
    def settings(self) -> Sequence[str]:
        """Everything that a volume depends on, apart from what it is made from and its seed."""
        ...


class TranslatesScans(MakesSoft, Protocol):
    """A trained model that translates scans, such as ``recipes.translator.Translator``."""

    @property
    def num_sources(self) -> range:
        """How many sources a translation may have."""
        ...

    def __call__(self, sources: dict[str, np.ndarray], target: str, *, seed: int) -> np.ndarray:
        """Return the target ``[H W D]`` in [0, 1] from ``sources`` of one patient, ``[H W D]`` each."""
        ...


class AbstractSoftDataModule(AbstractBraTSDataModule):
    """Makes soft volumes of every scan, and keeps them.

    Args:
        config: of the run.
        maker: makes them.
        copies: how many of each scan.
        progress: called with (done, total) during long work; None draws a bar if ``trainer.progress`` is on.
    """

    verb: ClassVar[str]
    """What the work is called in the progress bar."""
    keeps_clean: ClassVar[bool] = False
    """Whether scans without their noise are kept as well."""

    def __init__(
        self,
        config: RefinerConfig | DetailConfig | MaisiDetailConfig | TranslationDetailConfig,
        *,
        maker: MakesSoft,
        copies: int,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, reads_images=True, progress=progress)
        self._maker = maker
        self._copies = copies
        self._num_classes = config.model.num_classes

    @abstractmethod
    def draw_sources(self, target: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Return the places of the sources of a soft volume of modality number ``target``."""

    @abstractmethod
    def make(self, images: np.ndarray, item: TranslationItem) -> np.ndarray:
        """Return the soft volume, float32 ``[H W D]`` in [0, 1], of a case's ``images``, as they are kept."""

    def build_dataset(self, part: Part) -> RefinerDataset:
        """Return the soft volumes of the patients of ``part`` with their scans."""
        self.require_held_out(self._maker.split, base="a model")
        cases = self._cache(part)
        items, store = self._items(cases), VolumeStore(self.config.store_dir / part)
        clean = self._clean_keys(cases) if self.keeps_clean else None
        self._fill(store, items, cases, part, clean)
        self._builder.hashes.save()
        data = self.config.data
        return RefinerDataset(
            cases=cases,
            items=items,
            store=store,
            modalities=data.modalities,
            label_map=data.label_map,
            num_classes=self._num_classes,
            transform=self._builder.transforms.build_pair_transforms(data.crop_size),
            seed=self.config.seed,
            clean=clean,
        )

    def _items(self, cases: CaseCache) -> list[TranslationItem]:
        names = self.config.data.modalities
        items = []
        for number, case in enumerate(cases.cases):
            content = self._builder.case_key(case)
            for target in range(len(names)):
                for copy in range(self._copies):
                    # Seeds depend on the content, not on the position, so a longer cohort keeps its volumes.
                    seed = int(content_key(content, names[target], copy, self.config.seed)[:12], 16)
                    sources = self.draw_sources(target, np.random.default_rng(seed))
                    wanted = [names[m] for m in sources]
                    key = content_key(content, names[target], wanted, seed, *self._maker.settings)
                    items.append(TranslationItem(key, number, target, sources, seed))
        return items

    def _clean_keys(self, cases: CaseCache) -> list[list[str]]:
        """Return the key of each case's modalities without noise."""
        contents = [self._builder.case_key(case) for case in cases.cases]
        return [
            [content_key(content, name, "clean", 1) for name in self.config.data.modalities]
            for content in contents
        ]

    def _fill(
        self,
        store: VolumeStore,
        items: Sequence[TranslationItem],
        cases: CaseCache,
        part: Part,
        clean: Sequence[Sequence[str]] | None,
    ) -> None:
        by_key = {item.key: item for item in items}
        places = {key: (n, m) for n, keys in enumerate(clean or ()) for m, key in enumerate(keys)}

        def make(key: str) -> Tensor:
            if key in by_key:
                item = by_key[key]
                return torch.from_numpy(self.make(cases[item.case].images, item))[None]
            number, m = places[key]
            scan = dequantise(cases[number].images[m])[None, None]
            return denoised(scan, scan > 0)[0]

        with self.report(f"{self.verb} {part} volumes") as progress:
            # Other runs may read a store that the config names.
            keep = self.config.data.store_dir is not None
            store.fill([*by_key, *places], make, progress=progress, keep_others=keep)


class AbstractTranslationsDataModule(AbstractSoftDataModule):
    """Translates every scan from random subsets of the patient's other scans.

    What is trained on them sees translations, not reconstructions of the target, which do not exist when it is used. It
    is trained on patients that the translator was trained on, too.

    Args:
        config: of the run.
        translator: translates scans.
        copies: translations of each scan.
        progress: called with the scans done and their number.
    """

    verb = "Translating"

    def __init__(
        self,
        config: RefinerConfig | DetailConfig | MaisiDetailConfig | TranslationDetailConfig,
        *,
        translator: TranslatesScans,
        copies: int,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, maker=translator, copies=copies, progress=progress)
        fewest = translator.num_sources[0]
        if len(config.data.modalities) <= fewest:
            raise ConfigError(
                f"data.modalities: expected at least {fewest + 1}, a target and the sources that inputs.transformer "
                f"takes, got {', '.join(config.data.modalities)}; add one."
            )
        self._translator = translator

    def draw_sources(self, target: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Return the places of some other modalities."""
        others = [m for m in range(len(self.config.data.modalities)) if m != target]
        most = min(self._translator.num_sources[-1], len(others))
        count = int(rng.integers(self._translator.num_sources[0], most + 1))
        return tuple(sorted(rng.permutation(others)[:count].tolist()))

    def make(self, images: np.ndarray, item: TranslationItem) -> np.ndarray:
        """Return the translation."""
        names = self.config.data.modalities
        sources = {names[m]: dequantise(images[m]).numpy() for m in item.sources}
        return self._translator(sources, names[item.target], seed=item.seed)
