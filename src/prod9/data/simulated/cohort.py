"""A BraTS-2023 folder of simulated patients: the offline default of the demo, the examples and the tests.

Everything is made from the MNI152 maps that nilearn ships, so nothing is downloaded and no patient's data are used.
Simulated scans are for trying the software; results on them are not evidence about patients.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.layouts.scan import Walk
from prod9.data.simulated.phantom import CONTRASTS, grey_matter, make_phantom
from prod9.data.simulated.template import load_template
from prod9.errors import ConfigError, DataError
from prod9.files import atomic_write, check_writable
from prod9.json_files import read_json
from prod9.system.folders import claimed, sweep
from prod9.system.processes import clean_context
from prod9.system.progress import Progress
from prod9.system.wording import plural
from prod9.volumes import write

VERSION = 1
"""Increased when the same seed gives different scans, so that older folders are not continued."""
MANIFEST = "manifest.json"
CARD = "CARD.md"
TABLE = "patients.csv"
"""What is known of every patient, as a table of covariates."""
RECORD = "simulated.json"
SUFFIXES = {"T1": "t1n", "T1ce": "t1c", "T2": "t2w", "FLAIR": "t2f"}
MNI_NOTICE = (
    "The template maps are those of the ICBM 152 nonlinear atlases, version 2009: Copyright (C) 1993-2009 Louis "
    "Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University. They may be "
    "used, copied, modified and distributed for any purpose without a fee, provided that this copyright notice "
    "appears in all copies; their authors and McGill University make no representation about their suitability "
    "for any purpose, and provide them as they are, without express or implied warranty."
)
"""Condition of the template's use; also in NOTICE."""

TUMOUR_SHARE = 0.75
_MEANINGS = {
    "tumour_share": "share of patients with a tumour",
    "tumour_ml_median": "tumour volume, median of those (ml)",
    "ventricle_ml_mean": "ventricle volume, mean (ml)",
    "ventricle_variation": "ventricle volume, coefficient of variation",
    "grey_dice_median": "overlap of grey matter between two patients, median Dice",
}
_GOLDEN = (5**0.5 - 1) / 2
_COMPARED = 8
"""Number of patients whose grey matter is compared in pairs: enough for a median."""


@dataclass(frozen=True)
class Subject:
    """One simulated patient: case name, and the volumes of ventricles, tumour and grey matter."""

    case_id: str
    index: int
    ventricle_ml: float
    tumour_ml: float
    grey_ml: float


@dataclass(frozen=True)
class SimulatedCohort:
    """The cohort in ``root``, subjects in the order of their index.

    figures: measurements. ``tumour_share``, ``tumour_ml_median`` (over patients with a tumour), ``ventricle_ml_mean``,
    ``ventricle_variation`` (standard deviation over mean) and ``grey_dice_median``, the overlap of grey matter
    between two patients (None for a single patient).
    """

    root: Path
    seed: int
    spacing_mm: float
    subjects: tuple[Subject, ...]
    figures: dict[str, float | None]


def simulate_cohort(
    output_dir: str | Path,
    *,
    num_subjects: int,
    spacing_mm: float = 3.0,
    seed: int = 0,
    progress: Progress | None = None,
    num_workers: int = 1,
) -> SimulatedCohort:
    """Write ``num_subjects`` patients as a BraTS-2023 folder with a manifest, a card and a table of covariates.

    Each has ``…-t1n``, ``-t1c``, ``-t2w``, ``-t2f`` (int16, 0 outside the brain) and ``-seg`` (1 necrosis,
    2 oedema, 3 enhancing tumour) on an isotropic grid. Subject k depends on ``seed`` and k alone. Complete subjects
    are kept, so an interrupted cohort continues, a larger one only adds subjects, and a smaller one changes nothing.

    Args:
        output_dir: the folder of the cohort; made if missing.
        num_subjects: patients.
        spacing_mm: side of a voxel.
        seed: of the random numbers.
        progress: called with the subjects (done, total).
        num_workers: processes.

    Raises:
        ConfigError: for impossible sizes, or a folder made with other settings.
        MissingDependencyError: without nilearn.
        DataError: if the folder cannot be written.
    """
    _check(num_subjects, spacing_mm, num_workers)
    root = Path(output_dir)
    check_writable(root)
    settings = {"version": VERSION, "seed": seed, "spacing_mm": spacing_mm}
    # Locked, since sweeping would also delete files that another process is writing.
    with claimed(root, key="the folder of the cohort"):
        sweep(root)
        _check_settings(root, settings)
        load_template()
        indices = sorted({*range(num_subjects), *_started(root)})
        subjects = {k: subject for k in indices if (subject := _read_record(root, k)) is not None}
        report = progress or (lambda done, total: None)
        report(len(subjects), len(indices))
        for subject in _simulate_all(root, [k for k in indices if k not in subjects], settings, num_workers):
            subjects[subject.index] = subject
            report(len(subjects), len(indices))
        ordered = tuple(subjects[k] for k in indices)
        figures = _measure(ordered, spacing_mm=spacing_mm, seed=seed)
        manifest = {**settings, "figures": figures, "subjects": [asdict(subject) for subject in ordered]}
        _write_text(root / MANIFEST, json.dumps(manifest, indent=1))
        _write_text(root / CARD, _card(ordered, settings, figures))
        _write_text(root / TABLE, _table(ordered))
        return SimulatedCohort(root, seed, spacing_mm, ordered, figures)


def simulate_subject(root: Path, index: int, *, spacing_mm: float, seed: int) -> Subject:
    """Write subject ``index`` below ``root``; its record is written last, so a folder with a record is complete.

    Args:
        root: the folder of the cohort.
        index: the subject's number, from 0.
        spacing_mm: side of a voxel in mm.
        seed: of the cohort.
    """
    phantom = make_phantom(**_recipe(index, spacing_mm=spacing_mm, seed=seed))
    case_id = _case_id(index)
    folder = root / case_id
    folder.mkdir(exist_ok=True)
    sweep(folder)
    for modality, suffix in SUFFIXES.items():
        _write_volume(
            folder / f"{case_id}-{suffix}.nii.gz", phantom.scans[modality], phantom.affine, np.int16
        )
    _write_volume(folder / f"{case_id}-seg.nii.gz", phantom.seg, phantom.affine, np.uint8)
    subject = Subject(
        case_id=case_id,
        index=index,
        ventricle_ml=round(phantom.ventricle_ml, 2),
        tumour_ml=round(phantom.tumour_ml, 2),
        grey_ml=round(float(phantom.grey.sum()) * spacing_mm**3 / 1000, 1),
    )
    _write_text(folder / RECORD, json.dumps(asdict(subject)))
    return subject


def has_tumour(index: int, *, seed: int) -> bool:
    """Return whether subject ``index`` has a tumour.

    Drawn from a golden-ratio sequence instead of independently, so that small cohorts have the same share.
    """
    return bool((seed * _GOLDEN**2 + index * _GOLDEN) % 1 < TUMOUR_SHARE)


def _recipe(index: int, *, spacing_mm: float, seed: int) -> dict[str, Any]:
    return {
        "spacing_mm": spacing_mm,
        "with_tumour": has_tumour(index, seed=seed),
        "rng": np.random.default_rng((seed, index)),
    }


def _simulate_all(
    root: Path, indices: Sequence[int], settings: dict[str, Any], num_workers: int
) -> Iterator[Subject]:
    arguments = {"spacing_mm": settings["spacing_mm"], "seed": settings["seed"]}
    if num_workers == 1 or len(indices) < 2:
        for index in indices:
            yield simulate_subject(root, index, **arguments)
        return
    # Threads of the caller (torch) would be in a broken state after a fork.
    with ProcessPoolExecutor(num_workers, mp_context=clean_context(__name__)) as pool:
        futures = [pool.submit(simulate_subject, root, index, **arguments) for index in indices]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check(num_subjects: int, spacing_mm: float, num_workers: int) -> None:
    if num_subjects < 1 or num_workers < 1:
        raise ConfigError(
            f"--num-samples and --workers: expected at least 1, got {num_subjects} and {num_workers}; raise them."
        )
    if not 1.0 <= spacing_mm <= 8.0:
        raise ConfigError(f"--spacing: expected 1 to 8 mm, got {spacing_mm:g}; 3 suits a quick look.")


def _check_settings(root: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that was made with other settings; write the settings before the first subject."""
    path = root / MANIFEST
    if path.exists():
        try:
            before = read_json(path)
        except DataError:
            before = {}
        before = before if isinstance(before, dict) else {}
        differing = [key for key, value in settings.items() if before.get(key) != value]
        if differing:
            raise ConfigError(
                f"{root}: expected a cohort with {', '.join(f'{key} {settings[key]}' for key in differing)}, got one "
                f"with other settings ({', '.join(str(before.get(key)) for key in differing)}); choose an empty folder."
            )
    elif next(Walk().volumes(root), None) is not None:
        raise ConfigError(
            f"{root}: expected simulated images or none, got images that were not simulated here; choose an empty "
            "folder."
        )
    else:
        _write_text(path, json.dumps({**settings, "subjects": []}, indent=1))


def _started(root: Path) -> Iterator[int]:
    """Yield the indices of the subjects that have a folder, complete or not, so that all get completed."""
    for folder in root.iterdir():
        match = re.fullmatch(r"BraTS-GLI-(\d{5})-000", folder.name)
        if match and folder.is_dir():
            yield int(match[1])


def _read_record(root: Path, index: int) -> Subject | None:
    case_id = _case_id(index)
    path = root / case_id / RECORD
    names = [f"{case_id}-{suffix}.nii.gz" for suffix in (*SUFFIXES.values(), "seg")]
    if not path.exists() or not all((path.parent / name).exists() for name in names):
        return None
    try:
        return Subject(**read_json(path))
    except (DataError, TypeError):
        return None


def _case_id(index: int) -> str:
    return f"BraTS-GLI-{index:05d}-000"


def _write_volume(path: Path, data: np.ndarray, affine: np.ndarray, dtype: type[np.generic]) -> None:
    # Axes run left, back and up, as in the challenge, which reveals readers that do not reorient.
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.asarray(data.shape[:2]) - 1
    write(path, data[::-1, ::-1], affine @ flip, dtype=dtype)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _measure(subjects: Sequence[Subject], *, spacing_mm: float, seed: int) -> dict[str, float | None]:
    ventricles = np.array([subject.ventricle_ml for subject in subjects])
    tumours = [subject.tumour_ml for subject in subjects if subject.tumour_ml > 0]
    # Grey matter is not stored; without the scans it is quickly made again.
    grey = [
        grey_matter(**_recipe(subject.index, spacing_mm=spacing_mm, seed=seed))
        for subject in subjects[:_COMPARED]
    ]
    overlaps = [2 * float((a & b).sum()) / float(a.sum() + b.sum()) for a, b in combinations(grey, 2)]
    return {
        "tumour_share": round(len(tumours) / len(subjects), 3),
        "tumour_ml_median": round(float(np.median(tumours)), 1) if tumours else None,
        "ventricle_ml_mean": round(float(ventricles.mean()), 1),
        "ventricle_variation": round(float(ventricles.std() / ventricles.mean()), 3),
        "grey_dice_median": round(float(np.median(overlaps)), 3) if overlaps else None,
    }


def _table(subjects: Sequence[Subject]) -> str:
    rows = [f"{one.case_id},{one.tumour_ml:g},{one.ventricle_ml:g}" for one in subjects]
    return "\n".join(["case,tumour_ml,ventricle_ml", *rows])


def _card(subjects: Sequence[Subject], settings: dict[str, Any], figures: dict[str, float | None]) -> str:
    rows = "\n".join(
        f"| {meaning} | {'-' if figures[key] is None else figures[key]} |"
        for key, meaning in _MEANINGS.items()
    )
    return f"""# SYNTHETIC brain scans

The patients of this folder do not exist. The scans of {plural(subjects, "patient")} were simulated by prod9 from the
MNI152 template (spacing
{settings["spacing_mm"]:g} mm, seed {settings["seed"]}, recipe version {settings["version"]}). They are for trying and
testing software and support no statement about patients.

| measured | value |
|---|---|
{rows}

Modalities: {", ".join(CONTRASTS)}. Labels of `-seg`: 1 necrotic core, 2 oedema, 3 enhancing tumour.

## Notice

{textwrap.fill(MNI_NOTICE, 120)}
"""
