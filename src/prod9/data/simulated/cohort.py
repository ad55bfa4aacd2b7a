"""A BraTS-2023 folder of simulated patients: the offline default of the demo, the examples and the tests.

Everything is made from the MNI152 maps that nilearn ships, so nothing is downloaded and nobody's data is used.
Simulated scans stand in for real ones to try the software; results on them say nothing about patients.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.layouts.scan import Walk, read_json
from prod9.data.simulated.phantom import CONTRASTS, grey_matter, make_phantom
from prod9.data.simulated.template import load_template
from prod9.errors import ConfigError, DataError
from prod9.files import atomic_write, check_writable
from prod9.system.folders import claimed, sweep
from prod9.system.wording import plural
from prod9.volumes import write

VERSION = 1
"""Raised whenever the same seed gives other scans, so that older folders are not continued."""
MANIFEST = "manifest.json"
CARD = "CARD.md"
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
"""Patients whose grey matter is compared, each with each: enough for a median."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Subject:
    """One simulated patient: its case name, the volumes of ventricles and tumour, how much tissue is grey."""

    case_id: str
    index: int
    ventricle_ml: float
    tumour_ml: float
    grey_ml: float


@dataclass(frozen=True)
class SimulatedCohort:
    """What ``simulate_cohort`` left in ``root``, subjects in the order of their index.

    figures: what was measured. ``tumour_share``, ``tumour_ml_median`` (of those with one), ``ventricle_ml_mean``,
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
    """Write ``num_subjects`` patients as a BraTS-2023 folder with a manifest and a card.

    Each has ``…-t1n``, ``-t1c``, ``-t2w``, ``-t2f`` (int16, 0 outside the brain) and ``-seg`` (1 necrosis,
    2 oedema, 3 enhancing tumour) on an isotropic grid of ``spacing_mm``. Subject k depends on ``seed`` and k
    alone; complete subjects are kept, so an interrupted cohort goes on, a larger one only adds, and a smaller one
    leaves the folder as it is. ``progress`` is called with the subjects done and in all.

    Raises ConfigError for sizes that make no sense or a folder made with other settings,
    MissingDependencyError without nilearn, DataError where the folder cannot be written.
    """
    _check(num_subjects, spacing_mm, num_workers)
    root = Path(output_dir)
    check_writable(root)
    settings = {"version": VERSION, "seed": seed, "spacing_mm": spacing_mm}
    # Whoever simulates here sweeps: the files that another process is writing would go too.
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
        return SimulatedCohort(root, seed, spacing_mm, ordered, figures)


def simulate_subject(root: Path, index: int, *, spacing_mm: float, seed: int) -> Subject:
    """Write subject ``index`` below ``root``; its record comes last, so a folder with a record is complete."""
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

    Drawn along a golden-ratio sequence rather than independently: then small cohorts have their share too.
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
    # Spawned, not forked: the caller may hold threads (torch) that a fork would leave in a broken state.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(simulate_subject, root, index, **arguments) for index in indices]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check(num_subjects: int, spacing_mm: float, num_workers: int) -> None:
    if num_subjects < 1 or num_workers < 1:
        raise ConfigError(
            f"--num-subjects and --workers must be at least 1, got {num_subjects} and {num_workers}; raise them."
        )
    if not 1.0 <= spacing_mm <= 8.0:
        raise ConfigError(f"--spacing: expected 1 to 8 mm, got {spacing_mm:g}; 3 suits a quick look.")


def _check_settings(root: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that was made with other settings, and remember these before the first subject."""
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
                f"{root} holds a cohort made with other settings: expected "
                f"{', '.join(f'{key} {settings[key]}' for key in differing)}, got "
                f"{', '.join(str(before.get(key)) for key in differing)}; choose an empty folder."
            )
    elif next(Walk().volumes(root), None) is not None:
        raise ConfigError(f"{root} holds images that were not simulated here; choose an empty folder.")
    else:
        _write_text(path, json.dumps({**settings, "subjects": []}, indent=1))


def _started(root: Path) -> Iterator[int]:
    """Yield the indices of the subjects that have a folder, complete or not: none may be left half made."""
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
    # Axes run left, back and up, as in the challenge: a reader that forgets to reorient shows here.
    data, affine = data[::-1, ::-1], affine @ _flip_matrix(data.shape)
    write(path, data, affine, dtype=dtype)


def _flip_matrix(shape: Sequence[int]) -> np.ndarray:
    """Return the index transform of reversing the first two axes."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix[:2, 3] = np.asarray(shape[:2]) - 1
    return matrix


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _measure(subjects: Sequence[Subject], *, spacing_mm: float, seed: int) -> dict[str, float | None]:
    ventricles = np.array([subject.ventricle_ml for subject in subjects])
    tumours = [subject.tumour_ml for subject in subjects if subject.tumour_ml > 0]
    # Grey matter is not kept with the scans; without the scans it is quickly made again.
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
