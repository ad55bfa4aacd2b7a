"""Finds the cases of a dataset: which files belong together, what each shows, and what its labels mean.

Names and numbers differ by challenge and year; everything that leaves this module is canonical: modalities
``T1``, ``T1ce``, ``T2``, ``FLAIR`` (other names are kept as the dataset spells them) and a label scheme
(:mod:`prod9.data.labels`). Only names and descriptions are read here, never a volume.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prod9.data.bids import looks_like_bids, scan_bids
from prod9.data.brats_folder import scan_brats
from prod9.data.cases import Case as Case
from prod9.data.datalist import LIST_SUFFIXES, scan_datalist
from prod9.data.decathlon import described_by, scan_msd, scan_nnunet
from prod9.data.labels import LABEL_SCHEMES as LABEL_SCHEMES
from prod9.data.labels import canonical_seg as canonical_seg
from prod9.data.labels import label_table
from prod9.data.names import DEFAULT_LABEL_MAP as DEFAULT_LABEL_MAP
from prod9.data.names import MODALITIES as MODALITIES
from prod9.data.names import SEG as SEG
from prod9.data.names import parse_modality as parse_modality
from prod9.data.scan import Scan
from prod9.errors import DataError

_YEARS = ("brats2018", "brats2019", "brats2020", "brats2021", "brats2023", "brats2024")
LAYOUTS: Mapping[str, Callable[[Path], Scan]] = {
    **dict.fromkeys(_YEARS, scan_brats),
    "msd": scan_msd,
    "nnunet": scan_nnunet,
    "bids": scan_bids,
    "datalist": scan_datalist,
}
"""Layout → what finds its cases. ``canonical`` names are those of no challenge, found as the years are."""


@dataclass(frozen=True)
class Dataset:
    """What lies below a folder. layout: of the whole (a key of ``LAYOUTS`` or ``brats``).

    cases: sorted by name, with whatever they have. ignored: volumes that belong to no case. problems: one
    message each, for what cannot be used as it is.
    """

    layout: str
    cases: tuple[Case, ...]
    ignored: tuple[Path, ...]
    problems: tuple[str, ...]


def scan_dataset(root: str | Path, *, layout: str = "auto", label_scheme: str = "auto") -> Dataset:
    """Return all that ``root`` holds, complete or not.

    root: a folder, or a CSV or JSON list of files. layout: ``auto`` looks at the folder, and for BraTS takes the
    year from each case's name. label_scheme: ``auto`` goes by layout, year or description. Raises DataError for
    a missing folder or one that is of no known layout, ConfigError for an unknown label scheme.
    """
    if layout not in ("auto", *LAYOUTS):
        raise DataError(
            f"data.layout: expected auto or one of {', '.join(LAYOUTS)}, got {layout}; correct it."
        )
    if label_scheme != "auto":
        label_table(label_scheme)
    root = Path(root)
    if not root.exists() or (root.is_file() and root.suffix.lower() not in LIST_SUFFIXES):
        what = "a file" if root.exists() else "nothing"
        raise DataError(
            f"{root}: expected a folder with cases, got {what}; check data.root "
            f"(a {', '.join(LIST_SUFFIXES)} list will do too)."
        )
    kind = detect_layout(root) if layout == "auto" else layout
    scan = LAYOUTS.get(kind, scan_brats)(root)
    cases = [_named(case, layout, label_scheme) for case in scan.cases]
    return Dataset(
        kind, tuple(sorted(cases, key=lambda c: c.case_id)), tuple(scan.ignored), tuple(scan.problems)
    )


def detect_layout(root: Path) -> str:
    """Return the layout of ``root``: a key of ``LAYOUTS``, or ``brats`` where names decide case by case."""
    if root.is_file():
        return "datalist"
    return described_by(root) or ("bids" if looks_like_bids(root) else "brats")


def find_cases(
    root: str | Path,
    *,
    layout: str = "auto",
    label_scheme: str = "auto",
    modalities: Sequence[str] = MODALITIES,
    require_seg: bool = False,
) -> list[Case]:
    """Return the cases of :func:`scan_dataset`, each with all of ``modalities`` and nothing else.

    Raises DataError, besides, for a folder without cases, for its problems, such as doubled files, and,
    naming every case, for missing modalities or segmentations.
    """
    dataset = scan_dataset(root, layout=layout, label_scheme=label_scheme)
    if dataset.problems:
        more = f" (and {len(dataset.problems) - 1} more; `prod9 data check` lists them)"
        raise DataError(dataset.problems[0] + (more if len(dataset.problems) > 1 else ""))
    if not dataset.cases:
        raise DataError(no_cases(Path(root)))
    require_known(dataset.cases, modalities)
    lacking = [
        f"{case.case_id} lacks {gap}"
        for case in dataset.cases
        if (gap := gaps(case, modalities, require_seg))
    ]
    if lacking:
        more = f" (and {len(lacking) - 10} more)" if len(lacking) > 10 else ""
        raise DataError(
            f"{root}: expected every case to have {', '.join([*modalities, *([SEG] if require_seg else [])])}, "
            f"got: {'; '.join(lacking[:10])}{more}; add the files, remove the cases, or name fewer data.modalities."
        )
    return [
        replace(
            case,
            images={name: case.images[name] for name in modalities},
            channels={name: case.channels[name] for name in modalities if name in case.channels},
        )
        for case in dataset.cases
    ]


def require_known(cases: Sequence[Case], modalities: Sequence[str]) -> None:
    """Refuse modalities that no case has and that are none of the four (DataError)."""
    known = list(dict.fromkeys([*MODALITIES, *(name for case in cases for name in case.images)]))
    unknown = [name for name in modalities if name not in known]
    if unknown:
        raise DataError(
            f"data.modalities: expected some of {', '.join(known)}, got {', '.join(unknown)}; correct the names."
        )


def gaps(case: Case, modalities: Sequence[str], require_seg: bool) -> str:
    """Return what ``case`` lacks, as text; empty when it is complete."""
    missing = [name for name in modalities if name not in case.images]
    return ", ".join([*missing, *([SEG] if require_seg and case.seg is None else [])])


def no_cases(root: Path) -> str:
    """Return the message for a folder without cases, naming a better one inside where there is one."""
    inside = (
        [path for path in sorted(root.glob("*")) if path.is_dir() and described_by(path)]
        if root.is_dir()
        else []
    )
    hint = (
        f"did you mean {inside[0]}?"
        if inside
        else "check data.root, or make a cohort with `prod9 data simulate`."
    )
    return (
        f"{root}: expected files such as BraTS-GLI-00000-000-t1n.nii.gz or BraTS2021_00000_t1.nii.gz, a dataset.json, "
        f"sub-* folders or a list, got none; {hint}"
    )


def _named(case: Case, layout: str, label_scheme: str) -> Case:
    """Let the config's words win over what was found."""
    if layout in _YEARS:
        case = replace(case, layout=layout, label_scheme=layout)
    return case if label_scheme == "auto" else replace(case, label_scheme=label_scheme)
