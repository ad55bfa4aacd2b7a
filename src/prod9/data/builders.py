"""DatasetBuilder: from cases to datasets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.datasets.brats import CachedAllModalitiesDataset, CachedRandomModalityDataset
from prod9.data.datasets.medmnist import (
    CachedMedMNIST3DStage1Dataset,
    MedMNIST3DStage2Dataset,
    MedMNIST3DVolumes,
)
from prod9.data.stores.cache import CacheMode, CaseCache, ContentHashes, case_key
from prod9.data.stores.latents import TokenStore
from prod9.data.transforms import TransformBuilder


@dataclass(kw_only=True, eq=False)
class DatasetBuilder:
    """Builds the datasets of one run, which share its transforms, cache settings and seed.

    Attributes:
        transforms: preprocessing and augmentation.
        modalities: in channel order.
        label_map: class of each modality.
        cache: where preprocessed cases are kept.
        cache_dir: folder of the disk cache and of the remembered content hashes; None remembers none.
        seed: of the augmentation.
        num_workers: threads that may read cases at a time.
    """

    transforms: TransformBuilder
    modalities: Sequence[str]
    label_map: Mapping[str, int]
    cache: CacheMode
    cache_dir: Path | None
    seed: int
    num_workers: int = 0

    def __post_init__(self) -> None:
        self.hashes = ContentHashes(None if self.cache_dir is None else self.cache_dir / "hashes.json")

    def case_key(self, case: Case) -> str:
        """Return the hash of a case's file contents and of the preprocessing."""
        return case_key(case, self.modalities, self.transforms.fingerprint, self.hashes)

    def build_cases(self, cases: Sequence[Case]) -> CaseCache:
        """Return the cases in a cache that preprocesses each at its first use."""
        return CaseCache(
            cases=cases,
            preprocess=self.transforms.build_preprocessing(self.modalities),
            mode=self.cache,
            directory=self.cache_dir,
            key=self.case_key,
            num_kept=2 * self.num_workers + 1,
        )

    def build_brats_stage1(self, cases: CaseCache, *, train: bool) -> CachedRandomModalityDataset:
        """Return single-modality samples; ``train`` adds random crops and augmentation."""
        return CachedRandomModalityDataset(
            cases=cases,
            modalities=self.modalities,
            label_map=self.label_map,
            transform=self.transforms.build_stage1_transforms(train),
            seed=self.seed,
        )

    def build_brats_stage2(self, cases: CaseCache) -> CachedAllModalitiesDataset:
        """Return all-modality samples of whole volumes."""
        return CachedAllModalitiesDataset(
            cases=cases, transform=self.transforms.build_stage2_transforms(self.modalities)
        )

    def build_medmnist3d_stage1(
        self, volumes: MedMNIST3DVolumes, *, train: bool
    ) -> CachedMedMNIST3DStage1Dataset:
        """Return single-volume samples; ``train`` adds random crops and augmentation."""
        return CachedMedMNIST3DStage1Dataset(
            volumes=volumes, transform=self.transforms.build_stage1_transforms(train), seed=self.seed
        )

    def build_medmnist3d_stage2(self, store: TokenStore) -> MedMNIST3DStage2Dataset:
        """Return the encoded volumes of ``store`` with their class labels."""
        return MedMNIST3DStage2Dataset(store=store)
