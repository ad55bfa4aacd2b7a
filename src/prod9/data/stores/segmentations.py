"""Segmentations of whole cases on the grid, one small compressed file each, which are read without the images.

The name of a file is a hash of the case's files and of the preprocessing, so a segmentation of other files or options
is never read. The segmentation of a brain compresses to a few kilobytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prod9.data.cases import Case
from prod9.data.preprocessing import CaseVolumes
from prod9.data.seg_loss import Kept
from prod9.data.stores.cache import CaseCache
from prod9.errors import DataError
from prod9.files import atomic_write, exclusive, reading
from prod9.system.folders import sweep
from prod9.system.progress import Progress

_KEPT_COLUMNS = 1 + len(fields(Kept))


class Segmentations(Protocol):
    """Segmentations by the names of the cases, for a control network."""

    @property
    def num_segmented(self) -> int:
        """Return how many of the cases have a segmentation."""
        ...

    def has(self, case_id: str) -> bool:
        """Tell whether the case has a segmentation."""
        ...

    def __getitem__(self, case_id: str) -> Tensor:
        """Return labels, uint8 [H W D], background everywhere for a case without segmentation."""
        ...


class SegmentationStore:
    """The segmentations of a set of cases, by the names of the cases; see :func:`build_segmentation_store`."""

    def __init__(
        self,
        files: Mapping[str, Path | None],
        grid: tuple[int, ...],
        kept: Mapping[str, Mapping[int, Kept]] | None = None,
    ) -> None:
        self._files = dict(files)
        self._grid = grid
        self.kept = dict(kept or {})
        """What the grid keeps of each segmentation, by case and label."""

    @property
    def num_segmented(self) -> int:
        """Return how many of the cases have a segmentation."""
        return sum(file is not None for file in self._files.values())

    def has(self, case_id: str) -> bool:
        """Tell whether the case has a segmentation."""
        return self._files[case_id] is not None

    def __getitem__(self, case_id: str) -> Tensor:
        """Return canonical labels, uint8 [H W D], background everywhere for a case without segmentation."""
        file = self._files[case_id]
        if file is None:
            return torch.zeros(self._grid, dtype=torch.uint8)
        return torch.from_numpy(_read(file)[0])


def build_segmentation_store(
    directory: Path,
    cases: CaseCache,
    *,
    key: Callable[[Case], str],
    grid: tuple[int, int, int],
    num_classes: int,
    progress: Progress | None = None,
) -> SegmentationStore:
    """Write what ``directory`` lacks and return the segmentations of ``cases``.

    Args:
        directory: of the files.
        cases: the cases, preprocessed.
        key: hash of a case's files and preprocessing.
        grid: voxels of a segmentation.
        num_classes: labels from 0 to ``num_classes - 1`` are accepted.
        progress: called with (done, total) after every case.

    Raises:
        DataError: naming the case, for any other label.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory):
        sweep(directory)
    files: dict[str, Path | None] = {}
    all_kept: dict[str, Mapping[int, Kept]] = {}
    for i, case in enumerate(cases.cases):
        files[case.case_id] = None
        if case.seg is not None:
            file = files[case.case_id] = directory / f"{key(case)}.npz"
            seg, all_kept[case.case_id] = _read(file) if file.is_file() else _write(file, cases[i])
            check_classes(seg, num_classes, case.seg)
        if progress is not None:
            progress(i + 1, len(cases))
    return SegmentationStore(files, grid, all_kept)


def check_classes(seg: np.ndarray, num_classes: int, source: Path) -> None:
    """Refuse labels of ``num_classes`` and above (DataError naming ``source``)."""
    strange = np.unique(seg[seg >= num_classes]).tolist()
    if strange:
        raise DataError(
            f"{source}: expected labels from 0 to {num_classes - 1}, got also {', '.join(map(str, strange))}; "
            "train with a larger condition.num_mask_classes, or map them with data.label_scheme."
        )


def _write(file: Path, case: CaseVolumes) -> tuple[np.ndarray, Mapping[int, Kept]]:
    assert case.seg is not None  # the case has a file of it
    seg = np.ascontiguousarray(case.seg, dtype=np.uint8)
    rows = np.asarray([[label, *astuple(kept)] for label, kept in case.kept.items()]).reshape(
        -1, _KEPT_COLUMNS
    )
    # Temporary files are swept under the same lock, since a shared store may have several writers.
    with exclusive(file.parent), atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, seg=seg, kept=rows)
    return seg, case.kept


def _read(file: Path) -> tuple[np.ndarray, Mapping[int, Kept]]:
    # The file is opened here, since np.load does not close a file that it finds damaged.
    remedy = "delete it to make it again"
    with (
        reading(file, "a stored segmentation", remedy=remedy),
        file.open("rb") as stream,
        np.load(stream, allow_pickle=False) as stored,
    ):
        rows = stored["kept"].tolist()
        kept = {int(label): Kept(int(p), int(q), ml, left) for label, p, q, ml, left in rows}
        return stored["seg"], kept
