"""``prod9 evaluate utility``: can a segmenter learn from synthetic patients what it learns from real ones?

The same small network is trained with the same number of steps on real patients, on synthetic ones, and on both,
several times each, and is tested on real patients that neither the generator nor any of these networks has seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9.data.cases import Case
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.data.layouts.names import MODALITIES
from prod9.data.splits import Split
from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.kept_overlaps import KeptOverlaps
from prod9.evaluation.judges.segmenter import dice, train_segmenter
from prod9.evaluation.score_table import Evaluation
from prod9.evaluation.sets.intervals import crossed_interval
from prod9.evaluation.sets.members import number_members
from prod9.evaluation.sets.patients import (
    REGIONS,
    PatientSet,
    first_entry,
    grid_and_spacing,
    read_patients,
    require_sizes,
)
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import BadFiles, outside
from prod9.evaluation.settings import Report, SetSettings, silent
from prod9.json_files import without_nan
from prod9.system.progress import Progress

SETS = ("real", "synthetic", "both")
MIN_PATIENTS, MIN_SEEDS = 10, 3
"""With fewer held-out patients or seeds, intervals are not reliable."""


@dataclass(frozen=True, kw_only=True)
class TrainedSettings(SetSettings):
    """What is asked of segmenters that are trained on real patients; with ``split``, on its train patients.

    Attributes:
        heldout: a folder of real patients to test on instead of the split's test patients.
        steps: training steps of each network.
    """

    modalities: tuple[str, ...] = MODALITIES
    replicates: int = 1000
    heldout: str | None = None
    steps: int = 400


@dataclass(frozen=True, kw_only=True)
class UtilitySettings(TrainedSettings):
    """What is asked for.

    Attributes:
        seeds: networks that are trained on each set.
    """

    seeds: int = 3


def evaluate_utility(
    real_root: Path,
    synthetic_root: Path,
    settings: UtilitySettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
    keep: Path | None = None,
) -> Evaluation:
    """Train and test; both folders hold patients of a known layout with segmentations.

    Raises ConfigError without held-out patients, DataError for folders and files that cannot be used.

    Args:
        real_root: folder of real patients.
        synthetic_root: folder of synthetic patients.
        settings: what is asked for.
        device: where networks are trained; the CPU by default.
        report: called with the progress of each part.
        keep: file where the result of each network is kept; what it holds is not trained again.
    """
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    training, held_out = real_cases(real_root, settings, without=synthetic_root, bad=bad)
    synthetic = find_cases(synthetic_root, modalities=settings.modalities, require_seg=True)
    for root in (real_root, synthetic_root, *map(Path, filter(None, [settings.heldout]))):
        layout = "auto" if root == synthetic_root else settings.layout
        bad.leave_out(f"of no case of {root}", list(scan_dataset(root, layout=layout).ignored), asked=False)
    trained_on = find_training_patients(
        [first_entry(case, settings.modalities) for case in held_out], synthetic_root, split=settings.split
    )
    grid, spacing = grid_and_spacing(first_entry(synthetic[0], settings.modalities), settings)
    require_sizes(grid, len(settings.modalities), len(training) + len(synthetic) + len(held_out))
    read = partial(
        read_patients,
        modalities=settings.modalities,
        grid=grid,
        spacing=spacing,
        bad=bad,
        report=report,
    )
    real, made = read("real", training), read("synthetic", synthetic)
    tested = read("held out", held_out)
    sets = {"real": real, "synthetic": made, "both": real.joined(made)}
    few = None
    if tested.num_patients < MIN_PATIENTS or settings.seeds < MIN_SEEDS:
        few = f"Fewer than {MIN_PATIENTS} held-out patients or {MIN_SEEDS} seeds: the intervals are not reliable."
    kept = KeptOverlaps(keep, {"steps": settings.steps, "device": device.type})
    overlaps = _train_and_test(sets, tested, settings, device, report, kept)
    return Evaluation(
        command="evaluate utility",
        settings={**asdict(settings), "grid": list(grid), "spacing": list(spacing)},
        sets={
            "real": _about(real_root, real, settings),
            "synthetic": _about(synthetic_root, made, settings),
            "heldout": _about(settings.heldout or real_root, tested, settings),
        },
        scores=list(_scores(overlaps, sets, tested, settings)),
        cases=list(_cases(overlaps, tested)),
        patients={
            "real": real.num_patients,
            "synthetic": made.num_patients,
            "held out": tested.num_patients,
        },
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning(), few])],
    )


# -- patients -------------------------------------------------------------------------------------


def real_cases(
    root: Path, settings: TrainedSettings, *, without: Path, bad: BadFiles
) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those to test on.

    Raises ConfigError where it is not said which, DataError for none.

    Args:
        root: folder of real patients.
        settings: which patients.
        without: folder of made patients, perhaps inside of ``root``, which are left out.
        bad: notes those.
    """
    cases = outside(_find(root, settings), lambda case: case.files, root=root, without=without, bad=bad)
    if settings.heldout is not None:
        held_out = _find(Path(settings.heldout), settings)
        shared = sorted({c.patient_id for c in cases} & {c.patient_id for c in held_out})
        if shared:
            raise DataError(
                f"{settings.heldout}: expected other patients than {root}, got {', '.join(shared[:5])} in both; "
                "remove them from one."
            )
        return cases, held_out
    if settings.split is None:
        raise ConfigError(
            "expected --split FILE (a run's split.json) or --heldout DIR, got neither: the networks are tested "
            "on real patients that nothing was trained on."
        )
    file = Path(settings.split)
    if not file.is_file():
        raise ConfigError(f"--split {file}: expected a split file, got none; a run keeps it as split.json.")
    split = Split.load(file)
    training, held_out = split.select(cases, "train"), split.select(cases, "test")
    for part, chosen in (("train", training), ("test", held_out)):
        if not chosen:
            raise DataError(
                f"{file}: expected {part} patients that are in {root}, got none; split with data.split.{part} above 0, "
                "or name another folder."
            )
    return training, held_out


def _find(root: Path, settings: TrainedSettings) -> list[Case]:
    return find_cases(
        root,
        layout=settings.layout,
        label_scheme=settings.label_scheme,
        modalities=settings.modalities,
        require_seg=True,
    )


def _about(root: str | Path, patients: PatientSet, settings: UtilitySettings) -> dict[str, Any]:
    return {
        "path": str(root),
        "cases": len(patients.names),
        "patients": patients.num_patients,
        "volumes": len(patients.names) * len(settings.modalities),
        "modalities": list(settings.modalities),
    }


# -- training, testing ----------------------------------------------------------------------------


def _train_and_test(
    sets: Mapping[str, PatientSet],
    held_out: PatientSet,
    settings: UtilitySettings,
    device: torch.device,
    report: Report,
    kept: KeptOverlaps,
) -> dict[str, Tensor]:
    """Return, for each training set, Dice ``[seeds, patients, regions]``; NaN where the patient has no such region.

    Args:
        sets: to train on.
        held_out: to test on.
        settings: what is asked for.
        device: where networks are trained.
        report: called with the progress of each network.
        kept: results of earlier networks; those of new ones are added.
    """
    overlaps: dict[str, list[Tensor]] = {name: [] for name in sets}
    for k in range(settings.seeds):
        for name, patients in sets.items():
            seed = settings.seed + k
            key = kept.key(patients, held_out, seed)
            found = kept.get(key)
            if found is None:
                found = _overlaps_of(
                    patients,
                    held_out,
                    steps=settings.steps,
                    seed=seed,
                    device=device,
                    progress=partial(report, f"Segmenter on {name}, seed {seed}"),
                )
                kept.put(key, found)
            overlaps[name].append(found)
    return {name: torch.stack(values) for name, values in overlaps.items()}


def _overlaps_of(
    patients: PatientSet,
    held_out: PatientSet,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> Tensor:
    """Train a segmenter on ``patients`` and return its Dice ``[patients, regions]`` on ``held_out``.

    Args:
        patients: to train on.
        held_out: to test on.
        steps: of training.
        seed: of the network and of what is drawn.
        device: where it is trained.
        progress: called with the steps (done, total).
    """
    segmenter = train_segmenter(
        patients.volumes.to(device), patients.masks.to(device), steps=steps, seed=seed, progress=progress
    )
    predicted = segmenter.predict(held_out.volumes.to(device)).cpu()
    regions = [dice(predicted[:, r : r + 1], held_out.masks[:, r : r + 1]) for r in range(len(REGIONS))]
    return torch.stack(regions, dim=1)


def _scores(
    overlaps: Mapping[str, Tensor],
    sets: Mapping[str, PatientSet],
    held_out: PatientSet,
    settings: UtilitySettings,
) -> Iterator[dict[str, Any]]:
    (members,) = number_members([(patient, "") for patient in held_out.patients])
    interval = partial(
        crossed_interval,
        replicates=settings.replicates,
        seed=settings.seed,
        patients=members.patients,
        least=0.0,
    )
    for r, region in enumerate(REGIONS):
        real = overlaps["real"][..., r].double()
        for name in SETS:
            own = overlaps[name][..., r].double()
            common = {"trained_on": name, "region": region, "num_training": len(sets[name].names)}
            counted = len(members.patients[~own.isnan().any(0)].unique())
            yield _row("dice", own.nanmean().item(), interval(own, most=1.0), own, counted, common)
            if name != "real":
                share = (own.nanmean() / real.nanmean()).item()
                yield _row("dice_share", share, interval(own, over=real), own, counted, common)


def _row(
    metric: str,
    value: float,
    interval: tuple[float, float] | None,
    values: Tensor,
    patients: int,
    common: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a row of the table for ``values``, the Dice by seed and case; ``patients`` have the region."""
    seeds, cases = values.shape[0], int((~values.isnan()).any(0).sum())
    low, high = interval or (float("nan"), float("nan"))
    note = None if patients else "no held-out patient has this region"
    row = {
        "group": "utility",
        "metric": metric,
        **common,
        "value": value,
        "low": low,
        "high": high,
        "num_seeds": seeds,
        "num_heldout": cases,
        "patients_heldout": patients,
        "better": "higher",
        "unit": "",
        "reliable": patients >= MIN_PATIENTS and seeds >= MIN_SEEDS,
        "note": "no interval: it needs 2 patients" if patients == 1 else note,
    }
    return without_nan(row)


def _cases(overlaps: Mapping[str, Tensor], held_out: PatientSet) -> Iterator[dict[str, Any]]:
    for trained_on, values in overlaps.items():
        for k, patients in enumerate(values.tolist()):
            for case, row in zip(held_out.names, patients, strict=True):
                for region, value in zip(REGIONS, row, strict=True):
                    yield {
                        "case": case,
                        "trained_on": trained_on,
                        "seed": k,
                        "region": region,
                        "dice": without_nan(value),
                    }
