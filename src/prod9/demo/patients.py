"""The demo's last part: whole patients under the masks that its model draws."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prod9.data.formats.brats import BRATS
from prod9.data.formats.form import Name
from prod9.demo.scores import LESIONS_SHOW_IN, Metrics
from prod9.demo.translation import SegmenterOf
from prod9.evaluation.judges.segmenter import dice
from prod9.evaluation.report.pictures import MADE
from prod9.json_files import without_nan
from prod9.measures.figures import Panel, Row, write_figure
from prod9.measures.slices import View, widest_slice
from prod9.modalities import MODALITIES
from prod9.pipelines.patients import PatientPipeline
from prod9.system.progress import Progress
from prod9.volumes import read, write

PATIENTS = "patients"
"""Their folder, and their block of metrics."""


def make_patients(
    pipeline: PatientPipeline,
    masks: Sequence[Path],
    folder: Path,
    *,
    segmenter_of: SegmenterOf,
    seed: int,
    progress: Progress,
) -> Metrics:
    """Make a patient under each mask, write them as BraTS 2023 does, and look for the lesions in them.

    Returns the Dice of what a segmenter finds in FLAIR with what was asked for: of each patient, and the mean.

    Args:
        pipeline: of all modalities, with control.
        masks: files of segmentations.
        folder: where the patients go.
        segmenter_of: gives a segmenter trained on real volumes of a class label.
        seed: of the first patient.
        progress: called with the patients (done, total).
    """
    segs = [pipeline.steered[0].place(path, label_scheme="canonical") for path in masks]
    segmenter = segmenter_of(pipeline.first.label_map[LESIONS_SHOW_IN])
    found: list[float] = []
    for patient in pipeline.generate(range(len(segs)), seed=seed, segs=segs):
        name = _name(patient.index)
        for modality, image in patient.images.items():
            path = folder / BRATS.image(name, modality, MODALITIES, True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, image, patient.affine)
        seg = segs[patient.index].seg
        write(folder / BRATS.seg(name, True), seg, patient.affine, dtype=np.uint8)
        shown = torch.from_numpy(patient.images[LESIONS_SHOW_IN])[None, None]
        asked = torch.from_numpy(seg > 0)[None, None]
        found.append(dice(segmenter.predict(shown), asked).item())
        progress(len(found), len(segs))
    return {
        "dice_followed": float(np.nanmean(found)) if np.isfinite(found).any() else None,
        "dice": without_nan(found),
        "made": len(found),
    }


def draw_made(folder: Path, path: Path, *, dice: Sequence[float | None], view: View) -> None:
    """Draw the patients in ``folder``, each where its lesion is widest.

    Args:
        folder: as :func:`make_patients` wrote it.
        path: of the picture.
        dice: of what a segmenter finds in each.
        view: voxel size and convention.
    """
    rows = []
    for index, found in enumerate(dice):
        name = _name(index)
        seg = read(folder / BRATS.seg(name, True)).data
        shown = [
            (modality, read(folder / BRATS.image(name, modality, MODALITIES, True)).data)
            for modality in MODALITIES
        ]
        panels = [Panel(title=modality, volume=volume) for modality, volume in shown]
        last = dict(shown)[LESIONS_SHOW_IN]
        words = "" if found is None else f"Dice {found:.2f}"
        panels.append(Panel(title="the mask it follows", volume=last, labels=seg, caption=words))
        rows.append(Row(panels=panels, index=widest_slice(seg, seg.shape)))
    write_figure(
        path,
        rows,
        view=view,
        title=MADE.title,
        notes=[
            "Nobody here exists. Slices where the lesion is widest. T2 is made under the mask, the others from it; "
            "Dice is that of a segmenter, trained on simulated patients, in FLAIR.",
        ],
    )


def _name(index: int) -> Name:
    return Name.of(f"BraTS-SYN-{index:05d}-000")
