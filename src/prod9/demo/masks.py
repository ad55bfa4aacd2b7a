"""The demo's masks: drawn by models of label maps that it trains, and compared with those of the training patients."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prod9.data.cases import Case
from prod9.data.lesions import Lesion, LesionFile
from prod9.demo.scores import Metrics
from prod9.evaluation.masks import compare_masks
from prod9.evaluation.report.pictures import MASKS
from prod9.measures.figures import Panel, Row, write_figure
from prod9.measures.slices import View, widest_slice
from prod9.pipelines.masks.draw import MaskPipeline
from prod9.system.progress import Progress
from prod9.volumes import write

SHOWN = 4
"""Masks of each kind in the picture, the largest first."""
_GREY = np.float32(0.3)
"""Brightness of the brain in it."""


def draw_masks(
    pipeline: MaskPipeline,
    training: Sequence[Case],
    folder: Path,
    *,
    num: int,
    seed: int,
    progress: Progress,
) -> Metrics:
    """Draw ``num`` masks into ``folder``, and return how they compare with those of the training patients.

    Args:
        pipeline: draws them.
        training: the patients that it was trained on; those without a lesion do not count.
        folder: where the masks go.
        num: of the masks.
        seed: of the first one.
        progress: called with the masks done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for mask in pipeline.draw(range(num), seed=seed, report=lambda done: progress(int(done), num)):
        for path, data in zip(
            _paths(folder, mask.index), (mask.lesion.labels, mask.lesion.brain), strict=True
        ):
            write(path, data, mask.lesion.affine, dtype=np.uint8)
    files = drawn_files(folder)
    found = compare_masks(files, training_files(training), seed=seed)
    scores = {
        name: value
        for score in found.scores
        for name, value in ((score.measure, score.value), (f"{score.measure}_floor", score.floor))
    }
    return {
        **scores,
        "highest_dice": max(dice for _, dice in found.nearest.values()),
        "copies": len(found.copies),
    }


def drawn_files(folder: Path) -> list[LesionFile]:
    """Return the masks that :func:`draw_masks` left, each with the outline of its brain."""
    count = len(list(folder.glob("mask_*_seg.nii.gz")))
    pairs = [_paths(folder, index) for index in range(count)]
    return [LesionFile(seg, brain, "canonical", seg.name) for seg, brain in pairs]


def training_files(training: Sequence[Case]) -> list[LesionFile]:
    """Return the segmentations of patients, each with one of its scans, which shows the brain."""
    return [
        LesionFile(case.seg, next(iter(case.images.values())), case.label_scheme, case.patient_id)
        for case in training
        if case.seg is not None
    ]


def draw_picture(
    drawn: Sequence[LesionFile], training: Sequence[LesionFile], path: Path, *, view: View, cohort: str
) -> None:
    """Draw masks beside those of training patients, where each is widest.

    Args:
        drawn: masks of a model.
        training: of patients.
        path: of the picture.
        view: voxel size and convention.
        cohort: says whose they are.
    """
    shown = [_largest(files) for files in (drawn, training)]
    sides = np.max([one.labels.shape[:2] for part in shown for one in part], axis=0)
    rows = [
        Row(panels=[_panel(words, one, sides) for one in part], index=0)
        for words, part in zip(("drawn by the model", "of a training patient"), shown, strict=True)
    ]
    write_figure(
        path,
        rows,
        view=view,
        title=MASKS.title,
        notes=[f"Axial slices where the lesion is widest, within the outline of the brain. {cohort}"],
    )


def _largest(files: Sequence[LesionFile]) -> list[Lesion]:
    """Return the largest lesions, in the boxes of their brains."""
    lesions = sorted((file.load().cropped() for file in files), key=lambda one: -one.ml)
    return lesions[:SHOWN]


def _panel(title: str, lesion: Lesion, sides: np.ndarray) -> Panel:
    """Return the slice where a lesion is widest, in the middle of ``sides`` voxels."""
    index = widest_slice(lesion.labels, lesion.labels.shape)
    before = (sides - lesion.labels.shape[:2]) // 2
    room = [
        (int(low), int(side - have - low))
        for low, side, have in zip(before, sides, lesion.labels.shape, strict=False)
    ]
    brain, labels = (
        np.pad(volume[:, :, index : index + 1], [*room, (0, 0)]) for volume in (lesion.brain, lesion.labels)
    )
    return Panel(title=title, volume=_GREY * brain, labels=labels, caption=f"{lesion.ml:.0f} ml")


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Return where a mask and the outline of its brain lie."""
    return folder / f"mask_{index:04d}_seg.nii.gz", folder / f"mask_{index:04d}_brain.nii.gz"
