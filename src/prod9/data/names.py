"""Reads file names: which case a volume belongs to, which patient and time point, and what it shows.

Names come in any case of letters, with or without ``.gz``, from file systems that spell ``é`` as one character
or two; :func:`parse_name` gives the same answer to all spellings of one name.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
DEFAULT_LABEL_MAP: Mapping[str, int] = {name: label for label, name in enumerate(MODALITIES)}
SEG = "seg"

# "t1ce" holds "t1", "t2f" holds "t2": the pattern tries the longest first.
TOKENS: Mapping[str, str] = {
    "t1gd": "T1ce",
    "t1ce": "T1ce",
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
"""What the last word of a name means, in lower case."""
_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_LAST_TOKEN = re.compile(rf"(?:^|[-_. ])({'|'.join(sorted(TOKENS, key=len, reverse=True))})$", re.IGNORECASE)

# Challenges whose official spelling is not upper case.
_MIXED_CASE = {"GOAT": "GoAT"}


@dataclass(frozen=True)
class Identity:
    """Whose scan it is: ``case_id`` in the official spelling, equal ``patient_id`` for all time points."""

    case_id: str
    patient_id: str
    time_point: str | None
    year: str | None


@dataclass(frozen=True)
class ParsedName:
    """A file name, taken apart. stem: what stands before the modality. kind: a modality or ``seg``."""

    stem: str
    kind: str
    identity: Identity


def _brats2018(match: re.Match[str]) -> tuple[str, str | None]:
    return f"Brats{match[1]}_{match[2].upper()}", match[3]


def _brats2019(match: re.Match[str]) -> tuple[str, str | None]:
    return f"BraTS19_{match[1].upper()}", match[2]


def _brats2020(match: re.Match[str]) -> tuple[str, str | None]:
    return f"BraTS20_{match[1].title()}_{match[2]}", None


def _brats2021(match: re.Match[str]) -> tuple[str, str | None]:
    return f"BraTS2021_{match[1]}", None


def _brats2023(match: re.Match[str]) -> tuple[str, str | None]:
    challenge = match[1].upper()
    return f"BraTS-{_MIXED_CASE.get(challenge, challenge)}-{match[2]}", match[3]


# Year → (pattern of a whole case name, its patient and time point, what joins the two).
_YEARS: Mapping[str, tuple[str, Callable[[re.Match[str]], tuple[str, str | None]], str]] = {
    "brats2018": (r"Brats(1[78])_([A-Z0-9_]+?)_(\d+)", _brats2018, "_"),
    "brats2019": (r"Brats19_([A-Z0-9_]+?)_(\d+)", _brats2019, "_"),
    "brats2020": (r"BraTS20_(Training|Validation|Testing)_(\d+)", _brats2020, "_"),
    "brats2021": (r"BraTS2021_(\d+)", _brats2021, "_"),
    "brats2023": (r"BraTS-([A-Z]+(?:-RT)?)-(\d+)(?:-(\d+))?", _brats2023, "-"),
}


def is_volume(name: str) -> bool:
    """Return whether ``name`` ends as a NIfTI file does, and is no hidden file (macOS writes ``._x.nii``)."""
    return _SUFFIX.search(name) is not None and not name.startswith(".")


def bare(name: str) -> str:
    """Return ``name`` without ``.nii`` or ``.nii.gz``, in one Unicode spelling."""
    return unicodedata.normalize("NFC", _SUFFIX.sub("", name))


def identify(name: str) -> Identity:
    """Return whose scan the case ``name`` is; a name of no challenge is its own patient."""
    name = unicodedata.normalize("NFC", name)
    for year, (pattern, take, joint) in _YEARS.items():
        match = re.fullmatch(pattern, name, re.IGNORECASE | re.ASCII)
        if match is not None:
            patient, time_point = take(match)
            case = patient if time_point is None else f"{patient}{joint}{time_point}"
            return Identity(case, patient, time_point, year)
    return Identity(name, name, None, None)


def parse_modality(name: str) -> str | None:
    """Return the modality that a file name ends in (before ``.nii`` or ``.nii.gz``), ``seg``, or None.

    The longest token wins; letters may be of any case: ``BraTS_T1.nii.gz`` is T1, ``…-t1c.nii.gz`` is T1ce.
    """
    match = _LAST_TOKEN.search(bare(name))
    return None if match is None else TOKENS[match[1].lower()]


def parse_name(name: str, *, folder: str = "") -> ParsedName | None:
    """Take a file name apart, or return None where it ends in no modality.

    folder: name of the folder it lies in, which stands for the case where the file does not say: a bare
    ``t1.nii.gz``, or case 355 of 2020, whose mask kept its hospital name.
    """
    stem = bare(name)
    match = _LAST_TOKEN.search(stem)
    if match is None:
        return None
    kind, case = TOKENS[match[1].lower()], stem[: match.start()]
    identity = identify(case)
    if folder and (not case or (kind == SEG and identity.year is None)):
        identity = identify(folder)
    return ParsedName(case, kind, identity)


def canonical_modality(name: str) -> str:
    """Return the modality that a dataset's own word means (``t1gd`` → ``T1ce``), or the word itself."""
    kind = parse_modality(name.strip())
    return name.strip() if kind in (None, SEG) else kind
