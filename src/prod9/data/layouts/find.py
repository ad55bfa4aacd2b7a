"""Finds the cases of a dataset: which files belong together, their modalities, and their label scheme.

Names differ by challenge and year; the results of this module are canonical: modalities ``T1``, ``T1ce``, ``T2``,
``FLAIR`` (other names are kept as the dataset spells them) and a label scheme (:mod:`prod9.data.labels`). Only names
and descriptions are read here, never voxels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prod9.data.cases import Case as Case
from prod9.data.labels import LABEL_SCHEMES as LABEL_SCHEMES
from prod9.data.labels import canonical_seg as canonical_seg
from prod9.data.labels import label_table
from prod9.data.layouts.bids import looks_like_bids, scan_bids
from prod9.data.layouts.brats_folder import scan_brats
from prod9.data.layouts.datalist import LIST_SUFFIXES, scan_datalist
from prod9.data.layouts.decathlon import described_by, scan_msd, scan_nnunet
from prod9.data.layouts.names import DEFAULT_LABEL_MAP as DEFAULT_LABEL_MAP
from prod9.data.layouts.names import MODALITIES as MODALITIES
from prod9.data.layouts.names import SEG as SEG
from prod9.data.layouts.names import parse_modality as parse_modality
from prod9.data.layouts.scan import (
    Scan,
    Walk,
    foreign_hint,
    is_dir,
    is_file,
    unreachable,
    wrong_name,
)
from prod9.errors import DataError
from prod9.system.wording import are, listing, plural

_LOG = logging.getLogger(__name__)

_YEARS = ("brats2015", "brats2018", "brats2019", "brats2020", "brats2021", "brats2023", "brats2024")
_LISTED = ("datalist", "msd")
_LABELS = ("labelsTr", "labelsTs")
LAYOUTS: Mapping[str, Callable[[Path], Scan]] = {
    **dict.fromkeys(_YEARS, scan_brats),
    "msd": scan_msd,
    "nnunet": scan_nnunet,
    "bids": scan_bids,
    "datalist": scan_datalist,
}
"""Layout → the function that finds its cases. Names of no challenge are found as those of the years are."""


@dataclass(frozen=True)
class Dataset:
    """The content of a dataset.

    Attributes:
        layout: of the whole, a key of ``LAYOUTS`` or ``brats``.
        cases: sorted by name, complete or not.
        ignored: volumes that belong to no case.
        problems: one message for each thing that cannot be used as it is.
        absent: those of the problems that are files which a list or a link names and which do not exist.
        doubts: links to nothing that may have been folders.
    """

    layout: str
    cases: tuple[Case, ...]
    ignored: tuple[Path, ...]
    problems: tuple[str, ...]
    absent: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def case_of(seg: Path) -> Case | None:
    """Return the case that ``seg`` is the segmentation of, None for none.

    Its dataset is the folder of the file, or the one around ``labelsTr`` and ``labelsTs``, as of nnU-Net and the MSD.
    """
    folder = seg.parent.parent if seg.parent.name in _LABELS else seg.parent
    try:
        cases = scan_dataset(folder).cases
    except DataError:  # a folder of no known layout holds no case
        return None
    return next(
        (case for case in cases if case.seg is not None and case.seg.resolve() == seg.resolve()), None
    )


def scan_dataset(root: str | Path, *, layout: str = "auto", label_scheme: str = "auto") -> Dataset:
    """Return all cases of ``root``, complete or not.

    Args:
        root: a folder, or a CSV or JSON list of files.
        layout: ``auto`` detects it and, for BraTS, takes the year from each case's name.
        label_scheme: ``auto`` follows layout, year or description.

    Raises:
        DataError: for a missing folder, or one without a known layout.
        ConfigError: for an unknown label scheme.
    """
    if layout not in ("auto", *LAYOUTS):
        raise DataError(
            f"data.layout: expected auto or one of {', '.join(LAYOUTS)}, got {layout}; correct it."
        )
    if label_scheme != "auto":
        label_table(label_scheme)
    root = Path(root)
    _require_input(root)
    kind = detect_layout(root) if layout == "auto" else layout
    scan = LAYOUTS.get(kind, scan_brats)(root)
    cases = [_named(case, layout, label_scheme) for case in scan.cases]
    _LOG.info("Found %s in the layout %s in %s.", plural(cases, "case"), kind, root)
    wrong = {
        case.case_id: text
        for case in cases
        # Reversed, so that the first wrong name stays.
        for what, name in reversed([("case", case.case_id), *(("modality", name) for name in case.images)])
        if (text := wrong_name(name, what, root)) is not None
    }
    return Dataset(
        kind,
        tuple(sorted((case for case in cases if case.case_id not in wrong), key=lambda c: c.case_id)),
        tuple(scan.ignored),
        (*scan.problems, *wrong.values()),
        tuple(scan.absent),
        tuple(scan.doubts),
    )


def _require_input(root: Path) -> None:
    """Raise DataError for anything but a folder or a list."""
    if is_dir(root) or (is_file(root) and root.suffix.lower() in LIST_SUFFIXES):
        return
    try:
        absent = not (root.is_symlink() or root.exists())
    except (OSError, ValueError):  # a name that is too long, a folder that may not be looked into
        absent = False
    if not absent and not is_file(root) and (message := unreachable(root)) is not None:
        raise DataError(message)
    what = "a file" if is_file(root) else "nothing"
    raise DataError(
        f"{root}: expected a folder with cases, got {what}; check the path "
        f"(a {', '.join(LIST_SUFFIXES)} list will do too)."
    )


def detect_layout(root: Path) -> str:
    """Return the layout of ``root``: a key of ``LAYOUTS``, or ``brats`` if each case's name decides."""
    if root.is_file():
        return "datalist"
    try:
        return described_by(root) or ("bids" if looks_like_bids(root) else "brats")
    except OSError as error:
        raise DataError(
            f"{root}: expected a folder that can be read, got {error.strerror or error}; change its permissions, or "
            "check the path."
        ) from error


def find_cases(
    root: str | Path,
    *,
    layout: str = "auto",
    label_scheme: str = "auto",
    modalities: Sequence[str] = MODALITIES,
    require_seg: bool = False,
    skip_incomplete: bool = False,
) -> list[Case]:
    """Return the cases of :func:`scan_dataset`, each with all of ``modalities`` and nothing else.

    Also raises DataError for a folder without cases, for problems such as doubled files, and for cases without a
    modality or segmentation, all of which it names.

    Args:
        root: folder or list.
        layout: a key of ``LAYOUTS``, or ``auto``.
        label_scheme: meaning of the values of segmentations, or ``auto``.
        modalities: those that every case has to have; ``seg`` asks for a segmentation, and a scan that shows the brain.
        require_seg: whether every case has to have a segmentation too.
        skip_incomplete: leave out incomplete cases and log them; an error if none is left.

    Example:
        >>> from pathlib import Path
        >>> from prod9.data.layouts.find import find_cases
        >>> for name in ("BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000-t2f.nii.gz"):
        ...     Path(name).touch()
        >>> [(case.case_id, case.patient_id, list(case.images)) for case in find_cases(".", modalities=["T1", "FLAIR"])]
        [('BraTS-GLI-00000-000', 'BraTS-GLI-00000', ['T1', 'FLAIR'])]
    """
    root = Path(root)
    dataset = scan_dataset(root, layout=layout, label_scheme=label_scheme)
    bearable = frozenset(dataset.absent) if skip_incomplete else frozenset[str]()
    _refuse_problems([text for text in dataset.problems if text not in bearable], dataset.absent)
    for text in dataset.doubts:
        _LOG.warning("%s", text)
    if not dataset.cases:
        raise DataError(next(iter(dataset.absent), None) or no_cases(root))
    scans = [name for name in modalities if name != SEG]
    require_known(dataset.cases, scans)
    cases = _complete(root, dataset, scans, require_seg or SEG in modalities, skip_incomplete)
    return [_with(case, scans or list(case.images)[:1]) for case in cases]


def _with(case: Case, scans: Sequence[str]) -> Case:
    """Return ``case`` with the images of ``scans`` alone."""
    return replace(
        case,
        images={name: case.images[name] for name in scans},
        channels={name: case.channels[name] for name in scans if name in case.channels},
    )


def _complete(
    root: Path, dataset: Dataset, modalities: Sequence[str], require_seg: bool, skip: bool
) -> list[Case]:
    """Return the complete cases; refuse the others, or with ``skip`` log them."""
    lacking = {
        case.case_id: f"{case.case_id} lacks {gap}"
        for case in dataset.cases
        if (gap := gaps(case, modalities, require_seg))
    }
    cases = [case for case in dataset.cases if case.case_id not in lacking]
    if lacking and (not skip or not cases):
        expected = ", ".join([*modalities, *([SEG] if require_seg else [])])
        remedy = "" if skip else ", or leave them out with data.skip_incomplete: true"
        raise DataError(
            f"{root}: expected every case to have {expected}, got: {listing(lacking.values(), 10, joint='; ')}; add "
            f"the files, remove the cases, or name fewer data.modalities{remedy}."
        )
    # A row with an absent file is not among the cases; in a folder, such a file shows up as a missing modality.
    absent = dataset.absent if dataset.layout in _LISTED else ()
    left_out = [*lacking.values(), *absent] if skip else []
    if left_out:
        _LOG.warning(
            "%s: %s %s left out (data.skip_incomplete): %s.",
            root,
            plural(left_out, "incomplete case"),
            are(left_out),
            listing(left_out, 10, joint="; "),
        )
    return cases


def _refuse_problems(problems: Sequence[str], absent: Sequence[str]) -> None:
    """Raise the first of ``problems`` as a DataError, with the number of the others."""
    if not problems:
        return
    hint = " (data.skip_incomplete: true leaves such cases out)" if problems[0] in absent else ""
    more = f" (and {len(problems) - 1} more; `prod9 data check` lists them)" if len(problems) > 1 else ""
    raise DataError(problems[0] + hint + more)


def require_known(cases: Sequence[Case], modalities: Sequence[str]) -> None:
    """Raise DataError for modalities that no case has and that are not among the usual four."""
    known = list(dict.fromkeys([*MODALITIES, *(name for case in cases for name in case.images)]))
    unknown = [name for name in modalities if name not in known]
    if unknown:
        raise DataError(
            f"data.modalities: expected some of {', '.join(known)}, got {', '.join(unknown)}; correct the names."
        )


def gaps(case: Case, modalities: Sequence[str], require_seg: bool) -> str:
    """Return the names of what ``case`` lacks; empty if it is complete."""
    missing = [name for name in modalities if name not in case.images]
    if not modalities and not case.images:
        missing = ["a scan"]
    return ", ".join([*missing, *([SEG] if require_seg and case.seg is None else [])])


def no_cases(root: Path) -> str:
    """Return the message for a folder without cases: its content, and a remedy."""
    expected = (
        f"{root}: expected files such as BraTS-GLI-00000-000-t1n.nii.gz or BraTS2021_00000_t1.nii.gz, a dataset.json, "
        "sub-* folders or a list, got"
    )
    if not is_dir(root):
        return f"{expected} no cases; add rows to the list."
    inside = [path for path in sorted(root.glob("*")) if path.is_dir() and described_by(path)]
    if inside:
        return f"{expected} none; did you mean {inside[0]}?"
    found = Walk()
    volumes = [path.relative_to(root) for path in found.volumes(root)]
    if volumes:
        return (
            f"{expected} {plural(volumes, 'volume')} whose names say no modality ({listing(volumes, 2)}); let them end "
            "in t1, t1ce, t2 or flair, or list them in a CSV (case,patient,T1,T1ce,T2,FLAIR,seg) and give that "
            "list in place of the folder."
        )
    if (hint := foreign_hint(root)) is not None:
        return f"{expected} {hint}."
    for message in [*found.problems, *found.doubts]:
        return f"{expected} none that can be reached: {message}"
    return f"{expected} none; check the path, or make a cohort with `prod9 data simulate`."


def _named(case: Case, layout: str, label_scheme: str) -> Case:
    """Replace what was found by the settings of the config."""
    if layout in _YEARS:
        case = replace(case, layout=layout, label_scheme=layout)
    return case if label_scheme == "auto" else replace(case, label_scheme=label_scheme)
