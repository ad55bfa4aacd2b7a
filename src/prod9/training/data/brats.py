"""BraTSDataModule: BraTS for stage 1, and pairs of modalities for stage 2 (kind ``decoder``)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.config.schema import (
    DataConfig,
    MaisiControlNetConfig,
    RefinerConfig,
    RunConfig,
    Stage1Config,
    TransformerConfig,
)
from prod9.data.builders import DatasetBuilder
from prod9.data.datasets.brats import CachedAllModalitiesDataset
from prod9.data.labels import doubt, label_table
from prod9.data.layouts.find import Case, find_cases
from prod9.data.sampling import SampleKey
from prod9.data.seg_loss import Kept, describe_loss
from prod9.data.splits import Part, Split, resolve_split
from prod9.data.stores.cache import CaseCache, case_digest
from prod9.data.stores.latents import Encode, ParallelEncode, TokenStore
from prod9.data.stores.segmentations import SegmentationStore, build_segmentation_store
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import ConfigError, DataError
from prod9.system.wording import plural
from prod9.training.data.module import AbstractSegmentedDataModule, Progress
from prod9.training.data.segmented import SegmentedSamples
from prod9.training.data.tokens import BraTSTokens
from prod9.volumes import read_header

_LOG = logging.getLogger(__name__)

_ANY_CLASS = 256
"""Bound on the classes of a segmentation that only says where something is."""


class AbstractBraTSDataModule(AbstractSegmentedDataModule):
    """Cases, split, preprocessing and geometry that all BraTS data modules share."""

    def __init__(self, config: RunConfig, *, progress: Progress | None = None) -> None:
        super().__init__(config, progress=progress)
        data = config.data
        self._cases: list[Case] = []
        self._caches: dict[Part, CaseCache] = {}
        self._digests: dict[str, str] | None = None
        # Stage 2 reads a volume once, to encode it: no use in keeping them all in memory.
        in_memory = data.cache == "memory" and not _reads_images(config)
        self._builder = DatasetBuilder(
            transforms=TransformBuilder(
                spacing=data.spacing,
                grid=data.grid,
                crop_size=data.crop_size if isinstance(config, Stage1Config) else None,
                intensity=IntensityScaling(**data.intensity.kwargs()),
                augment=Augmentation(**data.augment.kwargs()),
            ),
            modalities=data.modalities,
            label_map=data.label_map,
            cache="none" if in_memory else data.cache,
            cache_dir=Path(data.cache_dir or Path(config.output_dir) / "cache"),
            seed=config.seed,
            num_workers=data.num_workers,
        )

    def find_reference_affine(self) -> np.ndarray:
        """Return the affine of the first training case's grid, made axis-aligned about its centre."""
        return axis_aligned(self._cache("train")[0].affine, self.config.data.grid)

    def find_split(self) -> Split:
        """Find the cases and divide their patients as ``<output_dir>/split.json`` says, or write it."""
        data = self.config.data
        assert isinstance(data, DataConfig)  # MedMNIST3D has a data module of its own
        self._cases = find_cases(
            Path(data.root),
            layout=data.layout,
            label_scheme=data.label_scheme,
            modalities=data.modalities,
            skip_incomplete=data.skip_incomplete,
        )
        if data.spacing is None:
            check_spacing(self._cases, data.modalities[0])
        path = Path(self.config.output_dir) / "split.json"
        return resolve_split(self._cases, path, settings=data.split.kwargs())

    def content_digests(self) -> dict[str, str]:
        """Return a digest of the files of each case of the training and validation parts, in a moment."""
        if self._digests is None:
            chosen = [case for part in ("train", "val") for case in self.split.select(self._cases, part)]
            with ThreadPoolExecutor(8) as pool:
                digests = list(pool.map(case_digest, chosen))
            self._digests = {case.case_id: digest for case, digest in zip(chosen, digests, strict=True)}
        return self._digests

    def build_patients(self, part: Part) -> CachedAllModalitiesDataset:
        """Return the whole patients of ``part`` with all modalities and segmentations, for evaluation."""
        return self._builder.build_brats_stage2(self._cache(part))

    def build_segmentations(
        self, part: Part, *, directory: Path, num_classes: int, progress: Progress | None
    ) -> SegmentationStore:
        """Return the segmentations of the patients of ``part``; see :func:`build_segmentation_store`."""
        store = build_segmentation_store(
            directory,
            self._cache(part),
            key=self._builder.case_key,
            grid=self.config.data.grid,
            num_classes=num_classes,
            progress=progress,
        )
        self._builder.hashes.save()
        warn_of_lost_lesions(store.kept, part)
        data = self.config.data
        if isinstance(data, DataConfig) and data.label_scheme == "auto":
            warn_of_doubtful_labels(self._cache(part).cases, store.kept)
        return store

    def _with_regions(self, part: Part, samples: Dataset[dict[str, Any]]) -> Dataset[dict[str, Any]]:
        """Return the samples of a transformer with ``seg`` beside them, where its loss weighs what is segmented."""
        config = self.config
        if part != "train" or not isinstance(config, TransformerConfig) or config.loss.region_weight == 1.0:
            return samples
        directory = config.store_dir / "segmentations"
        with self._report(f"Reading {part} segmentations") as progress:
            segmentations = self.build_segmentations(
                part, directory=directory, num_classes=_ANY_CLASS, progress=progress
            )
        if not segmentations.num_segmented:
            raise ConfigError(
                f"loss.region_weight: expected segmentations to weigh by, but no case of the {part} split in "
                f"{config.data.root} has one; add them, or set it to 1."
            )
        return SegmentedSamples(samples, segmentations)

    def _cache(self, part: Part) -> CaseCache:
        if part not in self._caches:
            self._caches[part] = self._builder.build_cases(self.split.select(self._cases, part))
        return self._caches[part]


def _reads_images(config: RunConfig) -> bool:
    """Tell whether training reads volumes at every step, not what they were encoded to."""
    if isinstance(config, MaisiControlNetConfig):
        return bool(config.condition.source_modalities)
    return isinstance(config, Stage1Config | RefinerConfig)


class BraTSDataModule(AbstractBraTSDataModule):
    """Stage 1: single-modality volumes. Stage 2, kind ``decoder``: tokens of a target and codes of a source.

    Stage 1 trains on random crops at ``data.batch_size`` and spends the last ``data.whole_volume_fraction``
    of the steps on whole volumes at batch 1: the statistics of group normalisation differ between the two.
    encode, indices_to_codes, encoder_hash, upstream_split: for stage 2, see
    :class:`~prod9.training.data.tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        encode: Encode | ParallelEncode | None = None,
        indices_to_codes: Callable[[Tensor], Tensor] | None = None,
        encoder_hash: str | None = None,
        upstream_split: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, progress=progress)
        self._tokens: BraTSTokens | None = None
        if isinstance(config, TransformerConfig):
            if len(config.data.modalities) < 2:
                raise ConfigError(
                    "data.modalities: expected at least two to translate between, "
                    f"got {', '.join(config.data.modalities)}; add one, or use model.kind label_conditional."
                )
            self._tokens = BraTSTokens(
                config,
                builder=self._builder,
                encode=encode,
                indices_to_codes=indices_to_codes,
                encoder_hash=encoder_hash,
                upstream_split=upstream_split,
            )

    @property
    def whole_steps(self) -> int:
        """Return how many of the last steps of stage 1 train on whole volumes."""
        data = self.config.data
        if self._tokens is not None or data.crop_size is None:
            return 0
        return round(data.whole_volume_fraction * self.config.training.max_steps)

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return cached volumes (stage 1) or encoded pairs (stage 2) of the patients of ``part``."""
        cases = self._cache(part)
        if self._tokens is not None:
            store, codebook = self._tokens.build(part, cases, self.split, self._report)
            num_modalities, seed = len(self.config.data.modalities), self.config.seed
            pairs = _TranslationDataset(store, codebook, num_modalities=num_modalities, seed=seed)
            return self._with_regions(part, pairs)
        with self._report(f"Reading {part} volumes") as progress:
            cases.warm(progress=progress, num_threads=max(1, self.config.data.num_workers))
        self._builder.hashes.save()
        if self.config.data.cache != "none":
            warn_of_cut_heads(cases, self.config.data.grid)
        return self._builder.build_brats_stage1(cases, train=part == "train")


class _TranslationDataset(Dataset[dict[str, Any]]):
    """A target modality's tokens and the codes of another modality of the same case, mirrored alike.

    The store lists blocks of ``num_modalities`` rows, one block a case and mirroring. A SampleKey draws the
    source at random; an int takes the next modality.
    """

    def __init__(self, store: TokenStore, codebook: Tensor, *, num_modalities: int, seed: int) -> None:
        self._store = store
        self._codebook = codebook
        self._num_modalities = num_modalities
        self._seed = seed

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        step = 1
        if isinstance(key, SampleKey):
            step = int(key.rng(self._seed).integers(1, self._num_modalities))
            key = key.index
        block, place = divmod(key, self._num_modalities)
        target = self._store[key]
        source = self._store[block * self._num_modalities + (place + step) % self._num_modalities]
        return {
            "label": torch.tensor(target["label"]),
            "target_latent": self._codebook[:, target["indices"]],
            "target_indices": target["indices"],
            "foreground": target["foreground"],
            "source_latent": self._codebook[:, source["indices"]],
            "source_label": torch.tensor(source["label"]),
            "case_id": target["case_id"],
            "flipped": target["flipped"],
            "modality": target["modality"],
            "source_modality": source["modality"],
        }


def axis_aligned(affine: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return a diagonal affine of the same spacing that leaves the centre of the grid where it is."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = (np.asarray(grid) - 1) / 2
    aligned = np.diag([*spacing, 1.0])
    aligned[:3, 3] = affine[:3, :3] @ middle + affine[:3, 3] - spacing * middle
    return aligned


def check_spacing(cases: Sequence[Case], modality: str) -> None:
    """Refuse cases of different spacing when they are not resampled (DataError); reads headers only."""
    spacings = {
        case.case_id: sorted(read_header(case.images[modality], channel=case.channels.get(modality)).spacing)
        for case in cases
    }
    first_id, first = next(iter(spacings.items()))
    others = [c for c, spacing in spacings.items() if not np.allclose(spacing, first, atol=1e-2)]
    if others:
        raise DataError(
            f"data.spacing is null, so all cases must have one spacing: {first_id} has {first} mm, "
            f"{plural(others, 'other differs', 'others differ')} ({others[0]}: {spacings[others[0]]}); set "
            "data.spacing to resample."
        )


def warn_of_cut_heads(cases: CaseCache, grid: Sequence[int]) -> None:
    """Log the cases whose head is larger than the grid and was cut."""
    extents = {case.case_id: cases[i].extent for i, case in enumerate(cases.cases)}
    cut = [name for name, extent in extents.items() if any(e > g for e, g in zip(extent, grid, strict=True))]
    if cut:
        largest = tuple(int(side) for side in np.max([extents[name] for name in cut], axis=0))
        _LOG.warning(
            "data.grid %s cuts off part of the head in %d of %d cases (%s, …); the largest needs %s.",
            tuple(grid),
            len(cut),
            len(extents),
            cut[0],
            largest,
        )


def warn_of_doubtful_labels(cases: Sequence[Case], kept: Mapping[str, Mapping[int, Kept]]) -> None:
    """Log what else the values of segmentations may mean whose scheme was found by names; by case and label."""
    by_scheme: dict[str, set[int]] = {}
    for case in cases:
        file_value = {label: value for value, label in label_table(case.label_scheme).items()}
        by_scheme.setdefault(case.label_scheme, set()).update(
            file_value[label] for label in kept.get(case.case_id, {})
        )
    for scheme, values in by_scheme.items():
        text = doubt(values, scheme)
        if text is not None:
            _LOG.warning("Segmentations: %s.", text)


def warn_of_lost_lesions(kept: Mapping[str, Mapping[int, Kept]], part: Part) -> None:
    """Log how many segmentations of ``part`` lose small lesions, or much of a label, between the voxels of the grid.

    kept: by case and label.
    """
    losses = {case: labels for case, labels in kept.items() if describe_loss(labels) is not None}
    if losses:
        worst = max(losses, key=lambda case: sum(one.parts - one.parts_kept for one in losses[case].values()))
        _LOG.warning(
            "%d of %d segmentations of the %s split lose small lesions between the voxels of the grid; most in %s: %s.",
            len(losses),
            len(kept),
            part,
            worst,
            describe_loss(losses[worst]),
        )
