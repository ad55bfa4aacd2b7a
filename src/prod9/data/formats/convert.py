"""Brings the cases of a dataset, of any known layout, into another folder form.

Images are copied byte for byte where their files hold one volume each, and voxel for voxel from 4D files.
Segmentations are copied too, unless their values mean something else in the new form, or are no whole numbers (as
0.9999 after resampling, which others may read as 0); then they are written anew.
"""

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prod9 import volumes
from prod9.data.cases import Case
from prod9.data.formats.form import GLIOMA, SYNTHETIC_CARD, Content, Form, Name
from prod9.data.formats.nnunet import NNUNET, as_test, make_splits
from prod9.data.labels import AS_IS, WHOLE_TUMOR, canonical_seg, label_table
from prod9.data.layouts.find import MODALITIES, gaps, no_cases, scan_dataset
from prod9.data.layouts.names import identify
from prod9.errors import ConfigError, DataError
from prod9.files import check_writable
from prod9.json_files import read_object, write_json
from prod9.system.progress import Progress
from prod9.system.wording import listing, plural

_CLOSE_MM = 1e-3
"""Difference of affines that nnU-Net takes as equal."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is brought into another form.

    Attributes:
        form: the new form.
        cases: all of them.
        synthetic: ids of those that do not exist.
        modalities: in the order of their channels.
        labels: name → value of what is segmented; empty without segmentations.
        tested: ids of cases that are put aside for a test; nnU-Net only.
        splits: for each fold, the case ids to train on and to validate on.
    """

    form: Form
    cases: Sequence[Case]
    synthetic: frozenset[str]
    modalities: Sequence[str]
    labels: Mapping[str, int]
    tested: frozenset[str] = frozenset()
    splits: Sequence[Mapping[str, Sequence[str]]] = field(default_factory=tuple)


def read_cases(
    root: Path, *, modalities: Sequence[str] = (), label_scheme: str = "auto"
) -> tuple[list[Case], frozenset[str]]:
    """Return the cases in ``root``, complete or not, and the ids of those that do not exist.

    Raises DataError for a folder without cases, and for files that cannot be used.
    """
    dataset = scan_dataset(root, label_scheme=label_scheme)
    if dataset.problems:
        raise DataError(dataset.problems[0])
    chosen = [
        replace(case, images={name: file for name, file in case.images.items() if name in modalities})
        if modalities
        else case
        for case in dataset.cases
    ]
    cases = [case for case in chosen if case.images]
    if not cases:
        raise DataError(no_cases(root))
    return cases, _synthetic_in(root, cases)


def plan_work(
    form: Form,
    real: Sequence[Case],
    synthetic: Sequence[Case],
    *,
    folds: int = 5,
    seed: int = 0,
    test_patients: Sequence[str] = (),
    skip_incomplete: bool = False,
) -> Work:
    """Check that cases fit ``form`` and together, and divide them.

    Raises ConfigError and DataError; nothing is written.

    Args:
        form: the new form.
        real: cases of patients.
        synthetic: cases that do not exist.
        folds: of ``splits_final.json``, for nnU-Net; 0 writes none.
        seed: of the folds.
        test_patients: patients that are put aside; some of them have to be among the cases.
        skip_incomplete: leave out cases that lack a modality or their segmentation, where the form needs all.
    """
    cases = _distinct([*real, *synthetic])
    present = {name for case in cases for name in case.images}
    modalities = [name for name in MODALITIES if name in present] + sorted(present - set(MODALITIES))
    form.require(modalities, has_seg=any(case.seg is not None for case in cases))
    if form.needs_all:
        cases = _complete(cases, modalities, skip_incomplete)
    made = frozenset(case.case_id for case in synthetic)
    if form.name == "bids" and made and len(made) < len(cases):
        raise ConfigError(
            "--format: expected real or synthetic cases for bids, which keeps derived data in a dataset of its own, "
            "got both; convert each into a folder of its own"
        )
    tested = frozenset(
        case.case_id for case in cases if case.patient_id in set(test_patients) and case.case_id not in made
    )
    if test_patients and not tested:
        raise DataError(
            "--split: expected test patients that are among the cases, got none of them "
            f"({listing(test_patients, 3)}); name the split.json of these patients, or leave it out."
        )
    if tested and form is not NNUNET:
        raise ConfigError(
            f"--split: expected --format nnunet, got {form.name}, which has no folder for a test"
        )
    names = [Name.of(case) for case in cases if case.case_id not in tested]
    kept = [name for name in names if name.case_id not in made]
    splits: list[dict[str, list[str]]] = []
    if form is NNUNET and folds and kept:
        splits = make_splits(kept, [n for n in names if n.case_id in made], folds=folds, seed=seed)
    return Work(
        form=form,
        cases=cases,
        synthetic=made,
        modalities=modalities,
        labels=_labels(form, cases),
        tested=tested,
        splits=splits,
    )


def lost_patients(work: Work) -> dict[str, list[str]]:
    """Return patient → cases, for patients whose cases would count as several patients in the new form.

    Its names alone say whose visit a case is, while a list has a column for it; names of BIDS hold the patient.
    """
    cases: dict[str, list[str]] = {}
    for case in work.cases if work.form.name != "bids" else ():
        cases.setdefault(case.patient_id, []).append(case.case_id)
    return {
        patient: names
        for patient, names in cases.items()
        if len({identify(name).patient_id for name in names}) > 1
    }


def carry_out(
    work: Work,
    target: Path,
    *,
    about: Mapping[str, Any],
    card: str = SYNTHETIC_CARD,
    progress: Progress | None = None,
) -> None:
    """Write the folder ``target``, which appears when it is complete.

    Raises DataError for a folder that holds something already, and for files that cannot be used.

    Args:
        work: what to write.
        target: the new folder.
        about: where the cases come from, for its description.
        card: page that goes beside synthetic cases.
        progress: called with (done, total) after every case.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: expected a new or empty folder, got one with files; choose another.")
    check_writable(target.parent)
    making = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
    making.mkdir()
    try:
        taken: dict[str, str] = {}
        for done, case in enumerate(work.cases, 1):
            _write_case(work, case, making, taken)
            if progress is not None:
                progress(done, len(work.cases))
        names = [Name.of(case) for case in work.cases if case.case_id not in work.tested]
        content = Content(
            names=names,
            modalities=work.modalities,
            labels=work.labels,
            synthetic=sorted(work.synthetic),
            splits=work.splits,
            about=about,
        )
        described = dict(work.form.describe(content)) | ({work.form.card: card} if work.synthetic else {})
        for name, value in described.items():
            write_description(making / name, value)
        if target.exists():
            target.rmdir()
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def write_description(path: Path, value: Any) -> None:
    """Write a file that describes a folder: text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    else:
        write_json(path, value)


def _write_case(work: Work, case: Case, target: Path, taken: dict[str, str]) -> None:
    name, made = Name.of(case), case.case_id in work.synthetic
    place = as_test if case.case_id in work.tested else str
    reference = None
    for modality, source in case.images.items():
        path = place(work.form.image(name, modality, work.modalities, made))
        if taken.setdefault(path, case.case_id) != case.case_id:
            raise DataError(
                f"{source}: {case.case_id} and {taken[path]} would both become {path}; rename one."
            )
        channel = case.channels.get(modality)
        header = volumes.read_header(source, channel=channel)
        if work.form.needs_all:
            reference = reference or header
            _require_same_voxels(header, reference)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if channel is None:
            _copy(source, target / path)
        else:
            (volume,) = volumes.read_channels(source, [channel]).values()
            scaling = header.scaling if np.issubdtype(header.dtype, np.integer) else volumes.UNSCALED
            volumes.write(target / path, volume.data, header, dtype=header.dtype, scaling=scaling)
    if case.seg is not None:
        path = target / place(work.form.seg(name, made))
        path.parent.mkdir(parents=True, exist_ok=True)
        if reference is not None:
            _require_same_voxels(volumes.read_header(case.seg), reference)
        _write_seg(work.form, case, case.seg, path)


def _copy(source: Path, target: Path) -> None:
    """Copy a file; one that is not compressed is compressed, which changes no byte of its content."""
    if source.name.lower().endswith(".gz"):
        shutil.copyfile(source, target)
        return
    with (
        source.open("rb") as plain,
        target.open("wb") as stream,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed)


def _write_seg(form: Form, case: Case, source: Path, target: Path) -> None:
    """Write a segmentation with the values that it has to have in the new form."""
    to_canonical = label_table(case.label_scheme)
    # A folder of BraTS is read by the year in each name, the others with canonical labels.
    year = identify(case.case_id).year if form.name == "brats" else None
    wanted = to_canonical if case.label_scheme == AS_IS else label_table(year or "brats2024")
    # Where two values mean one label, as in brats2015, the first stands for it.
    values = {label: value for value, label in reversed(list(wanted.items()))}
    file = volumes.read(source)
    labels = canonical_seg(file.data, case.label_scheme, source)
    alike = wanted == to_canonical or all(values.get(label) == value for value, label in to_canonical.items())
    if alike and np.array_equal(file.data, np.rint(file.data)):
        _copy(source, target)
        return
    strange = sorted(set(np.unique(labels).tolist()) - values.keys())
    if strange:
        raise DataError(
            f"{source}: expected labels that {form.name} names ({', '.join(map(str, sorted(values)))}), got "
            f"{', '.join(map(str, strange))}; choose nnunet, or map them with --label-scheme."
        )
    lookup = np.zeros(max(values) + 1, dtype=np.uint8)
    lookup[list(values)] = list(values.values())
    volumes.write(target, lookup[labels], file.header, dtype=np.uint8)


def _labels(form: Form, cases: Sequence[Case]) -> dict[str, int]:
    """Return the names of the labels; ConfigError for segmentations that do not mean the same."""
    segmented = [case for case in cases if case.seg is not None]
    kinds = {
        name if name in (AS_IS, WHOLE_TUMOR) else "glioma" for name in (c.label_scheme for c in segmented)
    }
    if len(kinds) > 1:
        raise ConfigError(
            f"--label-scheme: expected segmentations that mean the same, got {', '.join(sorted(kinds))}; convert "
            "them apart"
        )
    if not kinds:
        return {}
    (kind,) = kinds
    if kind == WHOLE_TUMOR:
        return {"whole tumour": 1}
    if kind == "glioma":
        cavity = any(case.label_scheme == "brats2024" for case in segmented)
        return GLIOMA | ({"resection cavity": 4} if cavity else {})
    if form is not NNUNET:
        raise ConfigError(
            f"--label-scheme: expected labels of a glioma for {form.name}, got segmentations of something else; "
            "choose nnunet, or say what each value means"
        )
    seen = sorted({value for case in segmented if case.seg for value in _values_in(case.seg)} - {0})
    if seen != list(range(1, len(seen) + 1)):
        raise ConfigError(
            f"--label-scheme: expected labels without gaps, as nnU-Net needs them, got {listing(seen, 10)}; map them "
            "with a table such as 1=1,4=2"
        )
    return {f"label {value}": value for value in seen}


def _values_in(seg: Path) -> list[int]:
    return np.unique(canonical_seg(volumes.read(seg).data, AS_IS, seg)).tolist()


def _synthetic_in(root: Path, cases: Sequence[Case]) -> frozenset[str]:
    """Return the ids of the cases that ``root`` says do not exist."""
    everything = frozenset(case.case_id for case in cases)
    if (root / "manifest.json").is_file():
        settings = read_object(root / "manifest.json").get("settings")
        if isinstance(settings, dict) and str(settings.get("command", "")).startswith("generate patients"):
            return everything
    if (root / "dataset.json").is_file():
        named = read_object(root / "dataset.json").get("synthetic_cases")
        return everything & frozenset(map(str, named if isinstance(named, list) else ()))
    if (root / "dataset_description.json").is_file():
        content = json.dumps(read_object(root / "dataset_description.json").get("GeneratedBy"))
        return everything if '"prod9"' in content else frozenset()
    return frozenset()


def _distinct(cases: Sequence[Case]) -> list[Case]:
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(case.case_id, case)
        if other is not case:
            places = " and ".join(str(one.files[0].parent) for one in (other, case))
            raise DataError(f"{case.case_id}: expected each case once, got it in {places}; rename one.")
    return list(cases)


def _complete(cases: Sequence[Case], modalities: Sequence[str], skip: bool) -> list[Case]:
    lacking = {case.case_id: text for case in cases if (text := gaps(case, modalities, True))}
    if lacking and not skip:
        shown = listing((f"{name} lacks {text}" for name, text in lacking.items()), joint="; ")
        raise DataError(
            f"expected {', '.join(modalities)} and a segmentation of every case, got {plural(lacking, 'case')} without "
            f"({shown}); leave them out with --skip-incomplete, or choose modalities with --modality."
        )
    kept = [case for case in cases if case.case_id not in lacking]
    if not kept:
        raise DataError(
            f"expected a case with {', '.join(modalities)} and a segmentation, got none; add files."
        )
    return kept


def _require_same_voxels(header: volumes.VolumeHeader, reference: volumes.VolumeHeader) -> None:
    same = header.shape == reference.shape
    if not same or not np.allclose(header.affine, reference.affine, atol=_CLOSE_MM):
        raise DataError(
            f"{header.path}: expected the voxels of {reference.path}, as nnU-Net needs them, got {header.shape} at "
            f"{np.round(header.affine[:3, 3], 2).tolist()} mm, there {reference.shape} at "
            f"{np.round(reference.affine[:3, 3], 2).tolist()} mm; register the case first."
        )
