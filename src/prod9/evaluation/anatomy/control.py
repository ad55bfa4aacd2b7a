"""``prod9 evaluate control``: do generated volumes show each class of the segmentation that steered them?"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9 import volumes
from prod9.data.labels import WRITTEN, canonical_seg
from prod9.data.layouts.names import bare
from prod9.errors import DataError
from prod9.evaluation.anatomy.finders import Finders, train_finders
from prod9.evaluation.judges.loading import load_autoencoder
from prod9.evaluation.judges.segmenter import dice
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.sets.intervals import Floor, mean_interval
from prod9.evaluation.sets.members import number_members
from prod9.evaluation.sets.patients import REGIONS, grid_and_spacing, region_masks
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, Preparation, find_volumes, grid_at
from prod9.evaluation.settings import Report, silent
from prod9.evaluation.utility import TrainedSettings
from prod9.json_files import without_nan
from prod9.pipelines.placement import align
from prod9.volumes import VolumeFile

GROUP = "control"
_NAME = re.compile(r"(?P<source>.+)_(?P<label>[^_]+)_\d{4,}$")


@dataclass(frozen=True, kw_only=True)
class ControlSettings(TrainedSettings):
    """What is asked for.

    Attributes:
        autoencoder: run, checkpoint or export of the stage 1 whose reconstructions are scored too.
    """

    autoencoder: str | None = None


@dataclass(frozen=True)
class _Overlaps:
    """Dice ``[N R]`` of the volumes of one modality in one set, NaN where a region was not asked for."""

    kind: str
    modality: str
    values: Tensor
    cases: tuple[str, ...]
    patients: tuple[str, ...]


def evaluate_control(
    real_root: Path,
    steered_root: Path,
    settings: ControlSettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
) -> Evaluation:
    """Compare what segmenters find in steered volumes with the segmentations that steered them, class by class.

    A segmenter of each modality is trained on real train patients. What it finds in scans of held-out patients, and
    with an autoencoder in their reconstructions, is the highest Dice that steered volumes can be expected to reach.

    Raises ConfigError without held-out patients, DataError for folders and files that cannot be used.

    Args:
        real_root: folder of real patients with segmentations.
        steered_root: folder of ``prod9 generate control``.
        settings: what is asked for.
        device: where networks compute; the CPU by default.
        report: called with the progress of each part.
    """
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    steered = find_volumes(steered_root, modalities=settings.modalities, bad=bad)
    names = tuple(sorted({entry.modality for entry in steered}))
    settings = replace(settings, modalities=names)
    grid, spacing = grid_and_spacing(steered[0], settings)
    # Before any network is trained: a folder that lacks what steered it costs no time.
    given = list(_read_steered(steered, Preparation(grid, spacing), bad, any_grid=settings.grid is not None))
    if not given:
        raise DataError(
            f"{steered_root}: expected at least one readable volume with its segmentation, got none."
        )
    finders = train_finders(
        real_root, settings, grid=grid, spacing=spacing, num_regions=len(REGIONS), without=steered_root,
        bad=bad, device=device, report=report,
    )  # fmt: skip
    overlaps = [*_steered_overlaps(given, finders), *_real_overlaps(finders, settings, device)]
    first = [
        Entry(case, patient, names[0], steered_root)
        for case, patient in zip(finders.held_out.names, finders.held_out.patients, strict=True)
    ]
    trained_on = find_training_patients(first, steered_root, split=settings.split)
    return Evaluation(
        command="evaluate control",
        settings={**asdict(settings), "grid": list(grid), "spacing": list(spacing)},
        sets={
            "real": {"path": str(real_root), "patients_trained_on": finders.num_training},
            "generated": {"path": str(steered_root), "volumes": len(given), "modalities": list(names)},
            "heldout": {
                "path": settings.heldout or str(real_root),
                "patients": finders.held_out.num_patients,
            },
        },
        patients={"real": finders.held_out.num_patients},
        scores=[score.to_dict() for score in _scores(overlaps, settings)],
        cases=without_nan(list(_cases(overlaps))),
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning()])],
    )


# -- reading, finding -----------------------------------------------------------------------------


def _read_steered(
    entries: Sequence[Entry], preparation: Preparation, bad: BadFiles, *, any_grid: bool
) -> Iterator[tuple[Entry, Tensor, Tensor]]:
    """Yield each volume ``[1 H W D]`` with the masks of its regions ``[R H W D]``.

    Args:
        entries: the steered volumes.
        preparation: how they are read.
        bad: notes files that cannot be used.
        any_grid: take volumes of another field of view than that of the grid.
    """
    for entry in entries:
        try:
            file = entry.read()
            seg_path = _seg_of(entry)
            seg = volumes.read(seg_path)
            align({"volume": file, "seg": seg})
            own = grid_at(file.header, preparation.spacing)
            if own != preparation.grid and not any_grid:
                raise DataError(
                    f"{entry.path}: expected a volume of {preparation.grid} voxels as the others, got {own}; "
                    "evaluate volumes of one model at a time, or choose the voxels with --grid."
                )
            canonical = VolumeFile(canonical_seg(seg.data, WRITTEN, seg_path), seg.header)
            volume, labels = preparation.place_with(file, canonical)
        except DataError as error:
            bad.report(entry, error)
            continue
        yield entry, volume[0], region_masks(torch.from_numpy(labels)[None])


def _seg_of(entry: Entry) -> Path:
    """Return the segmentation that steered a volume, as ``prod9 generate control`` names it."""
    match = _NAME.fullmatch(bare(entry.path.name))
    path = entry.path.with_name(f"{match['source'] if match else bare(entry.path.name)}_seg.nii.gz")
    if not path.is_file():
        raise DataError(
            f"{entry.path}: expected the segmentation that steered it beside it, {path.name}, got none; name a folder "
            "of `prod9 generate control --seg`."
        )
    return path


def _steered_overlaps(given: Sequence[tuple[Entry, Tensor, Tensor]], finders: Finders) -> Iterator[_Overlaps]:
    for name in finders.segmenters:
        own = [item for item in given if item[0].modality == name]
        if not own:
            continue
        found = finders.find(name, torch.stack([volume for _, volume, _ in own]))
        asked = torch.stack([masks for _, _, masks in own])
        patients = tuple(entry.patient_id for entry, _, _ in own)
        yield _Overlaps(
            "dice_steered", name, _dice_by_region(found, asked), tuple(e.case_id for e, _, _ in own), patients
        )


def _real_overlaps(finders: Finders, settings: ControlSettings, device: torch.device) -> Iterator[_Overlaps]:
    network = None
    if settings.autoencoder is not None:
        network = load_autoencoder(settings.autoencoder, device=device).network.eval()
    held_out = finders.held_out
    for k, name in enumerate(settings.modalities):
        real = held_out.volumes[:, k : k + 1]
        sets = {"dice_real": real}
        if network is not None:
            with torch.no_grad():
                again = [network.reconstruct(x.to(device)).clamp(0.0, 1.0).cpu() for x in real.split(1)]
            sets["dice_reconstructions"] = torch.cat(again)
        for kind, made in sets.items():
            values = _dice_by_region(finders.find(name, made), held_out.masks)
            yield _Overlaps(kind, name, values, held_out.names, held_out.patients)


def _dice_by_region(found: Tensor, asked: Tensor) -> Tensor:
    """Return the Dice ``[N R]`` of each region."""
    return torch.stack([dice(found[:, r : r + 1], asked[:, r : r + 1]) for r in range(asked.shape[1])], dim=1)


# -- scores ---------------------------------------------------------------------------------------


def _scores(overlaps: Sequence[_Overlaps], settings: ControlSettings) -> Iterator[Score]:
    names = list(dict.fromkeys(one.modality for one in overlaps))
    for modality in ["all", *names] if len(names) > 1 else ["all"]:
        own = [one for one in overlaps if modality in ("all", one.modality)]
        kinds = [
            kind
            for kind in ("dice_steered", "dice_reconstructions", "dice_real")
            if any(o.kind == kind for o in own)
        ]
        for r, region in enumerate(REGIONS):
            values = {
                kind: torch.cat([o.values[:, r] for o in own if o.kind == kind]).double() for kind in kinds
            }
            highest = values["dice_reconstructions" if "dice_reconstructions" in kinds else "dice_real"]
            for kind in kinds:
                patients = [p for o in own if o.kind == kind for p in o.patients]
                yield _score(kind, values[kind], patients, highest, modality, region, settings)


def _score(
    kind: str,
    values: Tensor,
    owners: Sequence[str],
    highest: Tensor,
    modality: str,
    region: str,
    settings: ControlSettings,
) -> Score:
    """Return the mean Dice of a set in one region; that of steered volumes beside the highest to be expected.

    Args:
        kind: metric.
        values: one per volume, NaN where the region was not asked for.
        owners: patient of each.
        highest: values of reconstructions, or else of scans.
        modality: one, or ``all``.
        region: of the tumour.
        settings: how intervals are drawn.
    """
    (members,) = number_members([(patient, "") for patient in owners])
    known = ~values.isnan()
    counted = len(members.patients[known].unique())
    interval = mean_interval(
        values,
        replicates=settings.replicates,
        seed=settings.seed,
        patients=members.patients,
        bounds=(0.0, 1.0),
    )
    mean = values.nanmean().item()
    ceiling = highest.nanmean().item()
    floor = (
        Floor(mean, ceiling, (counted, counted))
        if kind == "dice_steered" and math.isfinite(ceiling)
        else None
    )
    note = None if counted else "no volume was asked for this region"
    return Score(
        group=GROUP,
        metric=kind,
        value=mean,
        better="higher",
        num_generated=int(known.sum()),
        num_real=int(known.sum()),
        patients_generated=counted,
        patients_real=counted,
        modality=modality,
        region=region,
        interval=interval,
        floor=floor,
        note="no interval: it needs 2 patients" if counted == 1 else note,
    )


def _cases(overlaps: Sequence[_Overlaps]) -> Iterator[Mapping[str, Any]]:
    for one in overlaps:
        for case, row in zip(one.cases, one.values.tolist(), strict=True):
            for region, value in zip(REGIONS, row, strict=True):
                yield {
                    "case": case,
                    "modality": one.modality,
                    "set": one.kind.removeprefix("dice_"),
                    "region": region,
                    "dice": value,
                }
