"""BraTSDataModule, volumes of BraTS for stage 1, and what all data modules on BraTS have in common."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from prod9.config.schema import RunConfig
from prod9.data.datasets.brats import CachedAllModalitiesDataset, CachedRandomModalityDataset
from prod9.data.label_covariates import measure
from prod9.data.labels import doubt, label_table
from prod9.data.layouts.find import Case, find_cases
from prod9.data.preprocessing import dequantise
from prod9.data.seg_loss import Kept, describe_loss
from prod9.data.splits import Part, Split, resolve_split
from prod9.data.stores.cache import CaseCache, case_digest
from prod9.data.stores.latents import StoreItem
from prod9.data.stores.segmentations import SegmentationStore, build_segmentation_store
from prod9.errors import DataError
from prod9.label_maps import classes_of
from prod9.measures.noise import noise_level
from prod9.models.run_folder import holds_run
from prod9.nifti.headers import times
from prod9.system.progress import Progress
from prod9.system.wording import plural
from prod9.training.data.module import AbstractSegmentedDataModule
from prod9.volumes import read_header

_LOG = logging.getLogger(__name__)
_QUANTILES = 11
_MEASURED_CASES = 64


class AbstractBraTSDataModule(AbstractSegmentedDataModule):
    """Cases, split, preprocessing and geometry of a run on BraTS.

    Args:
        config: of the run.
        reads_images: whether training reads volumes at every step; otherwise each is read once, to encode it, and
            none is kept in memory.
        progress: called with (done, total) during long work; None draws a bar if ``trainer.progress`` is on.
    """

    def __init__(
        self, config: RunConfig, *, reads_images: bool = False, progress: Progress | None = None
    ) -> None:
        super().__init__(config, progress=progress)
        data = config.data
        if data.kind != "brats":
            raise ValueError(f"data.kind: expected brats, got {data.kind}; use a data module of that family.")
        self._data = data
        self._cases: list[Case] = []
        self._caches: dict[Part, CaseCache] = {}
        self._digests: dict[str, str] | None = None
        self._builder = self.make_builder(
            cache="none" if data.cache == "memory" and not reads_images else data.cache,
            cache_dir=Path(data.cache_dir or Path(config.output_dir) / "cache"),
        )

    def find_reference_affine(self) -> np.ndarray:
        """Return the affine of the first training case's grid, made axis-aligned about its centre."""
        return axis_aligned(self._cache("train")[0].affine, self._data.grid)

    def find_split(self) -> Split:
        """Find the cases and divide their patients as ``<output_dir>/split.json`` says, or write that file.

        A file that does not fit is refused where a run was trained with it, and written anew elsewhere.
        """
        data = self._data
        self._cases = find_cases(Path(data.root), **data.reading)
        if data.spacing is None:
            check_spacing(self._cases)
        folder = Path(self.config.output_dir)
        return resolve_split(
            self._cases, folder / "split.json", settings=data.split.kwargs(), trained=holds_run(folder)
        )

    def content_digests(self) -> dict[str, str]:
        """Return a digest of the files of each case of the training and validation parts, without reading all of it."""
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
        """Return the segmentations of the patients of ``part``; see :func:`build_segmentation_store`.

        Args:
            part: ``train``, ``val`` or ``test``.
            directory: where stores are.
            num_classes: of the segmentations, background included.
            progress: called with the patients done and their number.
        """
        cases = self._cache(part)
        store = build_segmentation_store(
            directory,
            cases,
            key=self._builder.case_key,
            grid=self._data.grid,
            num_classes=num_classes,
            progress=progress,
        )
        self._builder.hashes.save()
        warn_of_lost_lesions(store.kept, part)
        if self._data.label_scheme == "auto":
            warn_of_doubtful_labels(cases.cases, store.kept)
        return store

    def store_items(self, part: Part) -> list[StoreItem]:
        """Return the volumes of ``part`` to encode: one per modality, case by case, then those of its mirror image."""
        data, cases = self._data, self._cache(part)
        items = [
            StoreItem(
                case_id=case.case_id,
                modality=modality,
                label=data.label_map[modality],
                flipped=flipped,
                content=content,
                load=lambda i=i, m=m: dequantise(cases[i].images[m])[None],
            )
            for i, case in enumerate(cases.cases)
            for content in [self._builder.case_key(case)]
            for flipped in self.mirrorings(part)
            for m, modality in enumerate(data.modalities)
        ]
        self._builder.hashes.save()
        return items

    def noise_levels(self) -> dict[str, list[float]]:
        """Return the levels of noise of at most 64 training patients by modality: quantiles 0, 0.1, … 1.

        Label maps have none.
        """
        if self._data.shows_labels:
            return {}
        cases = self._cache("train")
        chosen = np.linspace(0, len(cases) - 1, min(len(cases), _MEASURED_CASES)).round().astype(int)
        levels = []
        for number in chosen:
            images = dequantise(cases[int(number)].images)
            levels.append(noise_level(images, images > 0))
        found = torch.stack(levels).nan_to_num(0.0).quantile(torch.linspace(0, 1, _QUANTILES), dim=0)
        # Rounded: six digits are more than any estimate has, and headers stay readable.
        return {
            name: [round(value, 6) for value in found[:, place].tolist()]
            for place, name in enumerate(self.config.data.modalities)
        }

    def lesions(self, part: Part) -> dict[str, dict[str, float]]:
        """Return what is measured of the label map of each patient of ``part``, for a run on label maps."""
        cases = self._cache(part)
        spacing = np.linalg.norm(self.reference_affine[:3, :3], axis=0)
        return {
            case.case_id: measure(classes_of(dequantise(cases[i].images[0])).numpy(), spacing)
            for i, case in enumerate(cases.cases)
        }

    def _cache(self, part: Part) -> CaseCache:
        if part not in self._caches:
            self._caches[part] = self._builder.build_cases(self.split.select(self._cases, part))
        return self._caches[part]


class BraTSDataModule(AbstractBraTSDataModule):
    """Single-modality volumes for stage 1.

    Training takes random crops at ``data.batch_size``, and whole volumes at batch 1 in the last
    ``data.whole_volume_fraction`` of the steps: the statistics of group normalisation differ between the two.
    """

    takes_crops = True

    def __init__(self, config: RunConfig, *, progress: Progress | None = None) -> None:
        super().__init__(config, reads_images=True, progress=progress)

    def build_dataset(self, part: Part) -> CachedRandomModalityDataset:
        """Return the cached volumes of the patients of ``part``."""
        cases = self._cache(part)
        with self.report(f"Reading {part} volumes") as progress:
            cases.warm(progress=progress, num_threads=max(1, self._data.num_workers))
        self._builder.hashes.save()
        if self._data.cache != "none":
            warn_of_cut_heads(cases, self._data.grid)
        if self._data.shows_labels and self._data.cache != "none":
            warn_of_lost_lesions({case.case_id: cases[i].kept for i, case in enumerate(cases.cases)}, part)
        return self._builder.build_brats_stage1(cases, train=part == "train")


def axis_aligned(affine: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return a diagonal affine of the same spacing that keeps the centre of the grid in its place."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = (np.asarray(grid) - 1) / 2
    aligned = np.diag([*spacing, 1.0])
    aligned[:3, 3] = affine[:3, :3] @ middle + affine[:3, 3] - spacing * middle
    return aligned


def check_spacing(cases: Sequence[Case]) -> None:
    """Refuse cases of different spacing, for a run that does not resample (DataError); reads headers only."""
    spacings = {
        case.case_id: read_header(path, channel=case.channels.get(name)).ras_spacing
        for case in cases
        for name, path in list(case.images.items())[:1]
    }
    first_id, first = next(iter(spacings.items()))
    others = [c for c, spacing in spacings.items() if not np.allclose(spacing, first, atol=1e-2)]
    if others:
        raise DataError(
            f"data.spacing: expected one spacing in all cases where it is null, got {times(first)} mm (along RAS) in "
            f"{first_id}, while {plural(others, 'other differs', 'others differ')} ({others[0]}: "
            f"{times(spacings[others[0]])}); set "
            "data.spacing to resample."
        )


def warn_of_cut_heads(cases: CaseCache, grid: Sequence[int]) -> None:
    """Log the cases whose head was cut, since it is larger than the grid."""
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
    """Log other possible meanings of segmentations whose scheme was found by names.

    ``kept``: what the grid keeps, by case and label, which holds the labels that occur.
    """
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

    ``kept``: what the grid keeps, by case and label.
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
