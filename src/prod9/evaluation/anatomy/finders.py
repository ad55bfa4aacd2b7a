"""A segmenter for each modality, trained on real patients, and real patients that none of them has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9.data.cases import Case
from prod9.evaluation.judges.segmenter import Lesions, Segmenter, train_segmenter
from prod9.evaluation.sets.patients import Grid, PatientSet, read_patients, require_sizes
from prod9.evaluation.sets.volume_sets import BadFiles
from prod9.evaluation.settings import Report
from prod9.evaluation.utility import TrainedSettings, real_cases

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Finders:
    """Trained segmenters, and what they are tested on.

    Attributes:
        segmenters: modality → segmenter of the first ``R`` regions.
        held_out: real patients, all modalities.
        num_training: real patients that the segmenters were trained on.
        device: where they compute.
    """

    segmenters: dict[str, Segmenter]
    held_out: PatientSet
    num_training: int
    device: torch.device

    def find(self, modality: str, volumes: Tensor) -> Lesions:
        """Return what the segmenter of ``modality`` finds in ``volumes`` ``[N 1 H W D]``, on the CPU."""
        return self.segmenters[modality].predict(volumes.to(self.device)).cpu()


def train_finders(
    real_root: Path,
    settings: TrainedSettings,
    *,
    grid: Grid,
    spacing: Spacing,
    num_regions: int,
    without: Path,
    bad: BadFiles,
    device: torch.device,
    report: Report,
) -> Finders:
    """Train a segmenter for each of ``settings.modalities``.

    Args:
        real_root: folder of real patients with segmentations.
        settings: which patients, and for how long.
        grid: voxels along each axis.
        spacing: voxel size in mm that real volumes are resampled to.
        num_regions: how many of :data:`~prod9.evaluation.sets.patients.REGIONS` they find.
        without: folder of made patients or volumes, perhaps inside of ``real_root``, which are left out.
        bad: notes files that cannot be used.
        device: where the networks are.
        report: called with the progress of each part.
    """
    training, held_out = real_cases(real_root, settings, without=without, bad=bad)
    require_sizes(grid, len(settings.modalities), len(training) + len(held_out))
    read = partial(read_on_grid, settings=settings, grid=grid, spacing=spacing, bad=bad, report=report)
    real = read("real", training)
    segmenters = {}
    for k, name in enumerate(settings.modalities):
        segmenters[name] = train_segmenter(
            real.volumes[:, k : k + 1].to(device),
            real.masks[:, :num_regions].to(device),
            steps=settings.steps,
            seed=settings.seed,
            progress=partial(report, f"Segmenter of {name}"),
        )
    return Finders(segmenters, read("held out", held_out), real.num_patients, device)


def read_on_grid(what: str, cases: Sequence[Case], *, settings: TrainedSettings, **how: Any) -> PatientSet:
    """Read ``cases`` as :func:`~prod9.evaluation.sets.patients.read_patients` does, with the modalities asked for."""
    return read_patients(what, cases, modalities=settings.modalities, **how)
