"""What a detail flow is trained on: soft volumes, the scans, and the scans without their noise."""

from typing import Protocol

import numpy as np

from prod9.config.schema import DetailConfig, MaisiDetailConfig, TranslationDetailConfig
from prod9.data.datasets.refiner import TranslationItem
from prod9.data.preprocessing import dequantise
from prod9.system.progress import Progress
from prod9.training.data.soft import (
    AbstractSoftDataModule,
    AbstractTranslationsDataModule,
    MakesSoft,
    TranslatesScans,
)


class ReconstructsScans(MakesSoft, Protocol):
    """A trained autoencoder, such as ``recipes.reconstructor.Reconstructor``."""

    def __call__(self, scan: np.ndarray, *, seed: int) -> np.ndarray:
        """Return the reconstruction of ``scan``, both ``[H W D]`` in [0, 1]."""
        ...


class BraTSReconstructionDetailDataModule(AbstractSoftDataModule):
    """Reconstructions of every scan."""

    verb = "Reconstructing"
    keeps_clean = True

    def __init__(
        self,
        config: DetailConfig | MaisiDetailConfig,
        *,
        reconstructor: ReconstructsScans,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, maker=reconstructor, copies=config.copies, progress=progress)
        self._reconstructor = reconstructor

    def draw_sources(self, target: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Return no sources."""
        return ()

    def make(self, images: np.ndarray, item: TranslationItem) -> np.ndarray:
        """Return the reconstruction of the scan itself."""
        return self._reconstructor(dequantise(images[item.target]).numpy(), seed=item.seed)


class BraTSTranslationDetailDataModule(AbstractTranslationsDataModule):
    """The refined translations of every scan."""

    keeps_clean = True

    def __init__(
        self,
        config: TranslationDetailConfig,
        *,
        translator: TranslatesScans,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, translator=translator, copies=config.copies, progress=progress)
