"""The demo's masks: drawn by models of label maps that it trains, and compared with those of the training patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from prod9.data.layouts.find import find_cases
from prod9.data.lesions import Lesion, LesionFile
from prod9.data.splits import Split
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


@dataclass(frozen=True)
class DemoMasks:
    """The masks of a demo.

    Attributes:
        run: of the model that draws them.
        data: folder of the patients.
        folder: where the masks go, each with the outline of its brain.
        num: of the masks.
        seed: of the first one.
    """

    run: Path
    data: Path
    folder: Path
    num: int
    seed: int

    def draw(self, device: str | torch.device, progress: Progress) -> Metrics:
        """Draw the masks, and return how they compare with those of the training patients."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pipeline = MaskPipeline.from_checkpoint(self.run, device=device, detail=None)
        report = partial(_whole, progress, self.num)
        for mask in pipeline.draw(range(self.num), seed=self.seed, report=report):
            for path, data in zip(self._paths(mask.index), (mask.labels, mask.lesion.brain), strict=True):
                write(path, data, mask.lesion.affine, dtype=np.uint8)
        found = compare_masks(self.drawn(), self.training(), seed=self.seed)
        scores = {
            name: value
            for score in found.scores
            for name, value in ((score.measure, score.value), (f"{score.measure}_floor", score.floor))
        }
        highest = max(dice for _, dice in found.nearest.values())
        return {**scores, "highest_dice": highest, "copies": len(found.copies)}

    def drawn(self) -> list[LesionFile]:
        """Return the masks, each with the outline of its brain."""
        pairs = [self._paths(index) for index in range(self.num)]
        return [LesionFile(seg, brain, "canonical", seg.name) for seg, brain in pairs]

    def segmentations(self) -> list[Path]:
        """Return the files of the masks."""
        return [self._paths(index)[0] for index in range(self.num)]

    def training(self) -> list[LesionFile]:
        """Return the segmentations of the training patients, each with one of its scans, which shows the brain."""
        cases = Split.load(self.run / "split.json").select(find_cases(self.data), "train")
        return [
            LesionFile(case.seg, next(iter(case.images.values())), case.label_scheme, case.patient_id)
            for case in cases
            if case.seg is not None
        ]

    def _paths(self, index: int) -> tuple[Path, Path]:
        """Return where a mask and the outline of its brain lie."""
        return self.folder / f"mask_{index:04d}_seg.nii.gz", self.folder / f"mask_{index:04d}_brain.nii.gz"


def draw_picture(masks: DemoMasks, path: Path, *, view: View, cohort: str) -> None:
    """Draw masks beside those of training patients, where each is widest.

    Args:
        masks: of the demo.
        path: of the picture.
        view: voxel size and convention.
        cohort: says whose they are.
    """
    shown = [_largest(files) for files in (masks.drawn(), masks.training())]
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


def _whole(progress: Progress, num: int, done: float) -> None:
    progress(int(done), num)
