"""DatasetBuilder: from cases to datasets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.datasets.brats import CachedAllModalitiesDataset, CachedRandomModalityDataset
from prod9.data.datasets.medmnist import (
    CachedMedMNIST3DStage1Dataset,
    MedMNIST3DStage2Dataset,
    MedMNIST3DVolumes,
)
from prod9.data.preprocessing import Preprocessor
from prod9.data.stores.cache import CacheMode, CaseCache, ContentHashes, case_key
from prod9.data.stores.latents import TokenStore
from prod9.data.transforms import TransformBuilder


class DatasetBuilder:
    """Builds the datasets of one run, which share its transforms, cache settings and seed.

    Args:
        transforms: preprocessing and augmentation.
        modalities: in channel order.
        label_map: class of each modality.
        cache: where preprocessed cases are kept.
        cache_dir: folder of the disk cache and of the remembered content hashes; None remembers none.
        seed: of the augmentation.
        num_workers: threads that may read cases at a time.
    """

    def __init__(
        self,
        *,
        transforms: TransformBuilder,
        modalities: Sequence[str],
        label_map: Mapping[str, int],
        cache: CacheMode,
        cache_dir: Path | None,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        self._transforms = transforms
        self._modalities = tuple(modalities)
        self._label_map = dict(label_map)
        self._cache: CacheMode = cache
        self._cache_dir = cache_dir
        self._seed = seed
        self._num_workers = num_workers
        self.hashes = ContentHashes(None if cache_dir is None else cache_dir / "hashes.json")

    def case_key(self, case: Case) -> str:
        """Return the hash of a case's file contents and of the preprocessing."""
        return case_key(case, self._modalities, self._transforms.fingerprint, self.hashes)

    def build_cases(self, cases: Sequence[Case]) -> CaseCache:
        """Return the cases in a cache that preprocesses each at its first use."""
        preprocess = Preprocessor(
            transform=self._transforms.build_preprocessing(self._modalities), modalities=self._modalities
        )
        return CaseCache(
            cases=cases,
            preprocess=preprocess,
            mode=self._cache,
            directory=self._cache_dir,
            key=self.case_key,
            num_kept=2 * self._num_workers + 1,
        )

    def build_brats_stage1(self, cases: CaseCache, *, train: bool) -> CachedRandomModalityDataset:
        """Return single-modality samples; ``train`` adds random crops and augmentation."""
        return CachedRandomModalityDataset(
            cases=cases,
            modalities=self._modalities,
            label_map=self._label_map,
            transform=self._transforms.build_stage1_transforms(train),
            seed=self._seed,
        )

    def build_brats_stage2(self, cases: CaseCache) -> CachedAllModalitiesDataset:
        """Return all-modality samples of whole volumes."""
        return CachedAllModalitiesDataset(
            cases=cases, transform=self._transforms.build_stage2_transforms(self._modalities)
        )

    def build_medmnist3d_stage1(
        self, volumes: MedMNIST3DVolumes, *, train: bool
    ) -> CachedMedMNIST3DStage1Dataset:
        """Return single-volume samples; ``train`` adds random crops and augmentation."""
        return CachedMedMNIST3DStage1Dataset(
            volumes=volumes, transform=self._transforms.build_stage1_transforms(train), seed=self._seed
        )

    def build_medmnist3d_stage2(self, store: TokenStore) -> MedMNIST3DStage2Dataset:
        """Return the encoded volumes of ``store`` with their class labels."""
        return MedMNIST3DStage2Dataset(store=store)
