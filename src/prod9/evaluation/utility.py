"""``prod9 evaluate utility``: can a segmenter learn from synthetic patients what it learns from real ones?

The same small network is trained with the same number of steps on real patients, on synthetic ones, and on both,
several times each, and is tested on real patients that neither the generator nor any of these networks has seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9.data.cases import Case
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.data.layouts.names import MODALITIES
from prod9.data.preprocessing import Preprocessor, dequantise
from prod9.data.splits import Split
from prod9.data.transforms import Augmentation, TransformBuilder
from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.segmenter import dice, train_segmenter
from prod9.evaluation.score_table import Evaluation
from prod9.evaluation.sets.intervals import crossed_interval
from prod9.evaluation.sets.members import number_members
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import PERCENTILES, BadFiles, Entry
from prod9.evaluation.settings import Report, SetSettings, silent
from prod9.json_files import without_nan
from prod9.volumes import to_ras

REGIONS: Mapping[str, tuple[int, ...]] = {
    "whole_tumour": (1, 2, 3),
    "tumour_core": (1, 3),
    "enhancing": (3,),
}
"""Canonical labels of each region, as BraTS scores them."""
SETS = ("real", "synthetic", "both")
MIN_SIDE = 9
"""Smaller volumes leave the segmenter's coarsest level a single voxel."""
MAX_BYTES = 8 << 30
"""Most memory that the volumes of all patients may take."""
MIN_PATIENTS, MIN_SEEDS = 10, 3
"""With fewer held-out patients or seeds, intervals are not reliable."""


@dataclass(frozen=True, kw_only=True)
class UtilitySettings(SetSettings):
    """What is asked for; with ``split``, networks are trained on the real train patients and tested on test patients.

    Attributes:
        heldout: a folder of real patients to test on instead of a split.
        steps: training steps of each network.
        seeds: networks that are trained on each set.
    """

    modalities: tuple[str, ...] = MODALITIES
    replicates: int = 1000
    heldout: str | None = None
    steps: int = 400
    seeds: int = 3


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


def evaluate_utility(
    real_root: Path,
    synthetic_root: Path,
    settings: UtilitySettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
) -> Evaluation:
    """Train and test; both folders hold patients of a known layout with segmentations.

    Raises ConfigError without held-out patients, DataError for folders and files that cannot be used.

    Args:
        real_root: folder of real patients.
        synthetic_root: folder of synthetic patients.
        settings: what is asked for.
        device: where networks are trained; the CPU by default.
        report: called with the progress of each part.
    """
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    training, held_out = _real_cases(real_root, settings)
    synthetic = find_cases(synthetic_root, modalities=settings.modalities, require_seg=True)
    for root in (real_root, synthetic_root, *map(Path, filter(None, [settings.heldout]))):
        layout = "auto" if root == synthetic_root else settings.layout
        bad.leave_out(f"of no case of {root}", list(scan_dataset(root, layout=layout).ignored), asked=False)
    trained_on = find_training_patients(
        [_entry(case, settings) for case in held_out], synthetic_root, split=settings.split
    )
    grid = settings.grid or _grid_of(_entry(synthetic[0], settings))
    _require_sizes(grid, len(settings.modalities), len(training) + len(synthetic) + len(held_out))
    found = {
        name: _read(name, cases, grid, settings, bad, report)
        for name, cases in (("real", training), ("synthetic", synthetic), ("held out", held_out))
    }
    sets = {
        "real": found["real"],
        "synthetic": found["synthetic"],
        "both": found["real"].joined(found["synthetic"]),
    }
    overlaps = _train_and_test(sets, found["held out"], settings, device, report)
    return Evaluation(
        command="evaluate utility",
        settings={**asdict(settings), "grid": list(grid)},
        sets={
            key: _about(root, found[name], settings)
            for key, root, name in (
                ("real", real_root, "real"),
                ("synthetic", synthetic_root, "synthetic"),
                ("heldout", settings.heldout or real_root, "held out"),
            )
        },
        scores=list(_scores(overlaps, sets, found["held out"], settings)),
        cases=list(_cases(overlaps, found["held out"])),
        patients={name: patients.num_patients for name, patients in found.items()},
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning()]), *_warnings(settings, found["held out"])],
    )


# -- patients -------------------------------------------------------------------------------------


def _real_cases(root: Path, settings: UtilitySettings) -> tuple[list[Case], list[Case]]:
    cases = _find(root, settings)
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


def _find(root: Path, settings: UtilitySettings) -> list[Case]:
    return find_cases(
        root,
        layout=settings.layout,
        label_scheme=settings.label_scheme,
        modalities=settings.modalities,
        require_seg=True,
    )


def _entry(case: Case, settings: UtilitySettings) -> Entry:
    name = settings.modalities[0]
    return Entry(case.case_id, case.patient_id, name, case.images[name], case.channels.get(name))


def _grid_of(entry: Entry) -> tuple[int, int, int]:
    file = entry.read()
    h, w, d = to_ras(file.data, file.header.affine)[0].shape
    return h, w, d


def _require_sizes(grid: tuple[int, int, int], num_modalities: int, num_cases: int) -> None:
    if max(grid) < MIN_SIDE:
        raise ConfigError(
            f"expected volumes of {MIN_SIDE} voxels or more along some axis, got {grid}; use smaller ones (--spacing)."
        )
    # "both" holds real and synthetic patients a second time.
    wanted = 2 * num_cases * grid[0] * grid[1] * grid[2] * (4 * num_modalities + len(REGIONS))
    if wanted > MAX_BYTES:
        raise ConfigError(
            f"expected volumes that fit into {MAX_BYTES >> 30} GiB, got {num_cases} patients of {grid} voxels, "
            f"{wanted / 2**30:.0f} GiB; use larger voxels (--spacing 2 2 2 with --grid), or fewer patients."
        )


def _read(
    what: str,
    cases: Sequence[Case],
    grid: tuple[int, int, int],
    settings: UtilitySettings,
    bad: BadFiles,
    report: Report,
) -> PatientSet:
    builder = TransformBuilder(
        spacing=settings.spacing,
        grid=grid,
        crop_size=None,
        intensity=PERCENTILES,
        augment=Augmentation(
            flip_prob=0.0, bias_field_prob=0.0, gamma_prob=0.0, scale_prob=0.0, affine_prob=0.0
        ),
    )
    preprocess = Preprocessor(
        transform=builder.build_preprocessing(settings.modalities), modalities=settings.modalities
    )
    images, masks, kept = [], [], []
    for done, case in enumerate(cases, 1):
        try:
            found = preprocess(case)
        except DataError as error:
            bad.report(_entry(case, settings), error)
            continue
        assert found.seg is not None  # asked for
        seg = torch.from_numpy(found.seg)
        images.append(dequantise(found.images))
        masks.append(torch.stack([torch.isin(seg, torch.tensor(v)) for v in REGIONS.values()]))
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
) -> dict[str, Tensor]:
    """Return, for each training set, Dice ``[seeds, patients, regions]``; NaN where the patient has no such region."""
    overlaps: dict[str, list[Tensor]] = {name: [] for name in sets}
    for k in range(settings.seeds):
        for name, patients in sets.items():
            segmenter = train_segmenter(
                patients.volumes.to(device),
                patients.masks.to(device),
                steps=settings.steps,
                seed=settings.seed + k,
                progress=partial(report, f"{name}, seed {settings.seed + k}"),
            )
            predicted = segmenter.predict(held_out.volumes.to(device)).cpu()
            regions = [
                dice(predicted[:, r : r + 1], held_out.masks[:, r : r + 1]) for r in range(len(REGIONS))
            ]
            overlaps[name].append(torch.stack(regions, dim=1))
    return {name: torch.stack(values) for name, values in overlaps.items()}


def _scores(
    overlaps: Mapping[str, Tensor],
    sets: Mapping[str, PatientSet],
    held_out: PatientSet,
    settings: UtilitySettings,
) -> Iterator[dict[str, Any]]:
    (members,) = number_members([(patient, "") for patient in held_out.patients])
    interval = partial(
        crossed_interval, replicates=settings.replicates, seed=settings.seed, patients=members.patients
    )
    for r, region in enumerate(REGIONS):
        real = overlaps["real"][..., r].double()
        for name in SETS:
            own = overlaps[name][..., r].double()
            common = {"trained_on": name, "region": region, "num_training": len(sets[name].names)}
            counted = len(members.patients[~own.isnan().any(0)].unique())
            yield _row("dice", own.nanmean().item(), interval(own), own, counted, common)
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
        "note": "no interval: it takes 2 patients" if patients == 1 else note,
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


def _warnings(settings: UtilitySettings, held_out: PatientSet) -> list[str]:
    if held_out.num_patients >= MIN_PATIENTS and settings.seeds >= MIN_SEEDS:
        return []
    return [
        f"Fewer than {MIN_PATIENTS} held-out patients or {MIN_SEEDS} seeds: the intervals are not reliable."
    ]
