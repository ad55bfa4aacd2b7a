"""Patients with segmentations, read onto one grid for segmenters of tumour regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prod9.data.cases import Case
from prod9.data.preprocessing import dequantise
from prod9.data.transforms import Augmentation, TransformBuilder
from prod9.errors import ConfigError, DataError
from prod9.evaluation.sets.volume_sets import PERCENTILES, BadFiles, Entry, Spacing, grid_at
from prod9.evaluation.settings import Report, SetSettings
from prod9.volumes import read_header

Grid = tuple[int, int, int]
REGIONS: Mapping[str, tuple[int, ...]] = {
    "whole_tumour": (1, 2, 3),
    "tumour_core": (1, 3),
    "enhancing": (3,),
}
"""Canonical labels of each region, as BraTS scores them."""
MIN_SIDE = 9
"""Smaller volumes leave the segmenter's coarsest level a single voxel."""
MAX_BYTES = 8 << 30
"""Most memory that the volumes of all patients may take."""


def region_masks(seg: Tensor) -> Tensor:
    """Return bool masks ``[… R H W D]`` of ``REGIONS`` from canonical labels ``[… 1 H W D]``."""
    masks = [torch.isin(seg, torch.tensor(labels, device=seg.device)) for labels in REGIONS.values()]
    return torch.cat(masks, dim=-4)


@dataclass(frozen=True)
class PatientSet:
    """Cases with their lesions.

    Attributes:
        volumes: ``[N M H W D]`` in [0, 1].
        masks: bool ``[N R H W D]``.
        names: of the cases.
        patients: of each case; several time points belong to one patient.
    """

    volumes: Tensor
    masks: Tensor
    names: tuple[str, ...]
    patients: tuple[str, ...]

    @property
    def num_patients(self) -> int:
        """Return how many different patients there are."""
        return len(set(self.patients))

    def joined(self, other: "PatientSet") -> "PatientSet":
        """Return the patients of both."""
        return PatientSet(
            torch.cat([self.volumes, other.volumes]),
            torch.cat([self.masks, other.masks]),
            self.names + other.names,
            self.patients + other.patients,
        )


def first_entry(case: Case, modalities: Sequence[str]) -> Entry:
    """Return the volume of the first modality, which stands for the case."""
    name = modalities[0]
    return Entry(case.case_id, case.patient_id, name, case.images[name], case.channels.get(name))


def grid_and_spacing(entry: Entry, settings: SetSettings) -> tuple[Grid, Spacing]:
    """Return the voxels that all volumes are brought to, and their size in mm: by default those of ``entry``."""
    header = read_header(entry.path, channel=entry.channel)
    return settings.grid or grid_at(header, settings.spacing), settings.spacing or header.ras_spacing


def require_sizes(grid: Grid, num_modalities: int, num_cases: int) -> None:
    """Raise ConfigError for volumes that are too small, or too large for the memory."""
    if max(grid) < MIN_SIDE:
        raise ConfigError(
            f"expected volumes of {MIN_SIDE} voxels or more along some axis, got {grid}; use smaller ones (--spacing)."
        )
    # "both" holds real and synthetic patients a second time.
    wanted = 2 * num_cases * grid[0] * grid[1] * grid[2] * (4 * num_modalities + len(REGIONS))
    if wanted > MAX_BYTES:
        raise ConfigError(
            f"expected volumes that fit into {MAX_BYTES >> 30} GiB, got {num_cases} patients of {grid} voxels, "
            f"{wanted / 2**30:.0f} GiB; use larger voxels (--spacing 2 with --grid), or fewer patients."
        )


def read_patients(
    what: str,
    cases: Sequence[Case],
    *,
    modalities: Sequence[str],
    grid: Grid,
    spacing: Spacing,
    bad: BadFiles,
    report: Report,
) -> PatientSet:
    """Read cases with their segmentations, empty masks where there is none; DataError when no case can be read.

    Args:
        what: name of the set.
        cases: to read.
        modalities: channels of a volume.
        grid: voxels along each axis.
        spacing: voxel size in mm to resample to; the same for all sets that are compared.
        bad: notes files that cannot be used.
        report: called after each case.
    """
    builder = TransformBuilder(
        spacing=spacing,
        grid=grid,
        crop_size=None,
        intensity=PERCENTILES,
        augment=Augmentation(
            flip_prob=0.0, bias_field_prob=0.0, gamma_prob=0.0, scale_prob=0.0, affine_prob=0.0
        ),
    )
    preprocess = builder.build_preprocessing(modalities)
    images, masks, kept = [], [], []
    for done, case in enumerate(cases, 1):
        try:
            found = preprocess(case)
        except DataError as error:
            bad.report(first_entry(case, modalities), error)
            continue
        images.append(dequantise(found.images))
        seg = torch.zeros(images[-1].shape[1:]) if found.seg is None else torch.from_numpy(found.seg)
        masks.append(region_masks(seg[None]))
        kept.append(case)
        report(f"Reading {what}", done, len(cases))
    if not kept:
        raise DataError(f"expected at least one readable patient of the {what} ones, got none.")
    return PatientSet(
        torch.stack(images),
        torch.stack(masks),
        tuple(case.case_id for case in kept),
        tuple(case.patient_id for case in kept),
    )
