"""Finds the cases of a BraTS folder: which files belong together, which modality each is, what its labels mean.

Names and numbers of the challenges differ by year; everything that leaves this module is canonical: modalities
``T1``, ``T1ce``, ``T2``, ``FLAIR``, segmentation labels 1 necrotic core, 2 oedema, 3 enhancing tumour,
4 resection cavity. Headers only are looked at by others; here it is names alone.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prod9.errors import DataError

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
DEFAULT_LABEL_MAP: Mapping[str, int] = {name: label for label, name in enumerate(MODALITIES)}
SEG = "seg"

# Longest first: "t1ce" holds "t1", "t2f" holds "t2".
_TOKENS: Mapping[str, str] = {
    "t1ce": "T1ce",
    "t1gd": "T1ce",
    "t1c": "T1ce",
    "t1n": "T1",
    "t1w": "T1",
    "t1": "T1",
    "flair": "FLAIR",
    "t2f": "FLAIR",
    "t2w": "T2",
    "t2": "T2",
    "segm": SEG,
    "seg": SEG,
}
_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_LAST_TOKEN = re.compile(rf"(?:^|[-_. ])({'|'.join(_TOKENS)})$", re.IGNORECASE)
_YEARS: Mapping[str, re.Pattern[str]] = {
    "brats2023": re.compile(r"(BraTS-[A-Za-z]+-\d+)-(\d+)$", re.IGNORECASE),
    "brats2021": re.compile(r"BraTS2021_\d+$", re.IGNORECASE),
    "brats2020": re.compile(r"BraTS20_(?:Training|Validation)_\d+$", re.IGNORECASE),
    "brats2018": re.compile(r"Brats1[789]_\S+$", re.IGNORECASE),
}

LABEL_SCHEMES: Mapping[str, Mapping[int, int]] = {
    "brats2018": {0: 0, 1: 1, 2: 2, 4: 3},
    "brats2020": {0: 0, 1: 1, 2: 2, 4: 3},
    "brats2021": {0: 0, 1: 1, 2: 2, 4: 3},
    "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
    # Post-treatment scans are named as in 2023, and 4 is their resection cavity. It is never guessed: a relabelled
    # copy of the older sets may hold 4 as the enhancing tumour.
    "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 4},
    "canonical": {0: 0, 1: 1, 2: 2, 3: 3},
}
"""Label values of a file → canonical labels."""
_NO_LABEL = 255
_LABEL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """One scan session. images: modality to file, canonical names. seg: its segmentation, if there is one.

    patient_id: equal for all time points of a patient, so that splits keep them together.
    layout: the naming it was found under. label_scheme: key of ``LABEL_SCHEMES``.
    """

    case_id: str
    patient_id: str
    images: dict[str, Path]
    seg: Path | None
    layout: str
    label_scheme: str


@dataclass
class _Found:
    """Files of one case while the tree is walked."""

    images: dict[str, Path] = field(default_factory=dict)


def parse_modality(name: str) -> str | None:
    """Return the modality that a file name ends in (before ``.nii`` or ``.nii.gz``), ``seg``, or None.

    The longest token wins; letters may be of any case: ``BraTS_T1.nii.gz`` is T1, ``…-t1c.nii.gz`` is T1ce.
    """
    match = _LAST_TOKEN.search(_SUFFIX.sub("", name))
    return None if match is None else _TOKENS[match[1].lower()]


def find_cases(
    root: str | Path,
    *,
    layout: str = "auto",
    modalities: Sequence[str] = MODALITIES,
    require_seg: bool = False,
) -> list[Case]:
    """Return the cases below ``root``, sorted by name, each with all of ``modalities``.

    layout: ``auto`` takes the year from each case's name. Raises DataError for a missing folder, for a folder
    without cases, and, naming every case, for missing modalities or segmentations and doubled files.
    """
    if layout != "auto" and layout not in LABEL_SCHEMES:
        raise DataError(
            f"data.layout: expected auto or one of {', '.join(LABEL_SCHEMES)}, got {layout}; correct it."
        )
    root = Path(root)
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise DataError(f"{root}: expected a folder with cases, got {what}; check data.root.")
    found = _collect(root)
    cases = [_case(name, files, layout) for name, files in sorted(found.items())]
    if not cases:
        raise DataError(
            f"{root}: expected files such as BraTS-GLI-00000-000-t1n.nii.gz or BraTS2021_00000_t1.nii.gz, got "
            "none; check data.root, or make a cohort with `prod9 data simulate`."
        )
    _require(cases, root, modalities, require_seg)
    keep = set(modalities)
    return [
        Case(
            case_id=case.case_id,
            patient_id=case.patient_id,
            images={name: path for name, path in case.images.items() if name in keep},
            seg=case.seg,
            layout=case.layout,
            label_scheme=case.label_scheme,
        )
        for case in cases
    ]


def canonical_seg(values: np.ndarray, scheme: str, path: str | Path) -> np.ndarray:
    """Map a segmentation of ``scheme`` to canonical labels, uint8 of the same shape.

    Values within 1e-3 of an integer count as it. Raises DataError, naming ``path``, the values and how many
    voxels hold them, where a value does not belong to the scheme.
    """
    table = LABEL_SCHEMES[scheme]
    lookup = np.full(max(table) + 2, _NO_LABEL, dtype=np.uint8)  # its last place is for what is out of range
    lookup[list(table)] = list(table.values())
    finite = np.nan_to_num(values, nan=-1, posinf=-1, neginf=-1)
    rounded = np.rint(finite)
    in_range = (rounded >= 0) & (rounded <= max(table)) & (np.abs(finite - rounded) <= _LABEL_TOLERANCE)
    labels = lookup[np.where(in_range, rounded, -1).astype(np.int8)]
    strange, counts = np.unique(values[labels == _NO_LABEL], return_counts=True)
    if strange.size:
        got = ", ".join(f"{v:g} ({n} voxels)" for v, n in zip(strange[:5], counts[:5], strict=True))
        raise DataError(
            f"{path}: expected labels {sorted(table)} of scheme {scheme}, got {got}; set data.layout to the year "
            "of the data, or repair the segmentation."
        )
    return labels


def _collect(root: Path) -> dict[str, _Found]:
    """Group image files below ``root`` by the name of their case."""
    found: dict[str, _Found] = defaultdict(_Found)
    for path in _walk(root):
        if not _SUFFIX.search(path.name) or path.name.startswith("."):
            continue
        stem = _SUFFIX.sub("", path.name)
        match = _LAST_TOKEN.search(stem)
        if match is None:
            continue
        kind = _TOKENS[match[1].lower()]
        name = stem[: match.start()]
        if not name or (kind == SEG and not _year(name)):
            # A bare `t1.nii.gz`, or case 355 of 2020, whose mask kept its hospital name: the folder decides.
            name = path.parent.name
        if kind in found[name].images:
            raise DataError(
                f"{path}: expected one {kind} file for case {name}, got {found[name].images[kind]} too; remove one."
            )
        found[name].images[kind] = path
    return {name: files for name, files in found.items() if set(files.images) - {SEG}}


def _walk(folder: Path, seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files below ``folder``; links are followed, but never into a folder that holds them."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir():
                yield from _walk(Path(entry.path), seen | {identity})
            elif entry.is_file():
                yield Path(entry.path)


def _case(name: str, files: _Found, layout: str) -> Case:
    year = layout if layout != "auto" else _year(name) or "canonical"
    match = _YEARS["brats2023"].match(name)
    images = {kind: path for kind, path in files.images.items() if kind != SEG}
    return Case(
        case_id=name,
        patient_id=match[1] if match else name,
        images={kind: images[kind] for kind in MODALITIES if kind in images},
        seg=files.images.get(SEG),
        layout=year,
        label_scheme=year,
    )


def _year(name: str) -> str | None:
    return next((year for year, pattern in _YEARS.items() if pattern.match(name)), None)


def _require(cases: Sequence[Case], root: Path, modalities: Sequence[str], require_seg: bool) -> None:
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown:
        raise DataError(
            f"data.modalities: expected some of {', '.join(MODALITIES)}, got {', '.join(unknown)}; correct the names."
        )
    lacking = []
    for case in cases:
        missing = [name for name in modalities if name not in case.images]
        if require_seg and case.seg is None:
            missing.append(SEG)
        if missing:
            lacking.append(f"{case.case_id} lacks {', '.join(missing)}")
    if lacking:
        more = f" (and {len(lacking) - 10} more)" if len(lacking) > 10 else ""
        raise DataError(
            f"{root}: expected every case to have {', '.join([*modalities, *([SEG] if require_seg else [])])}, "
            f"got: {'; '.join(lacking[:10])}{more}; add the files, remove the cases, or name fewer data.modalities."
        )
