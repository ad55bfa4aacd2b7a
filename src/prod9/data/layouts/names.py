"""Reads file names: the case, patient and time point of a volume, and its modality.

Names may be in upper or lower case, with or without ``.gz``, and from file systems that write ``é`` as one or two
characters; :func:`parse_name` gives the same answer for all spellings of one name.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.layouts.visits import is_container, is_visit, split_visit
from prod9.modalities import DEFAULT_LABEL_MAP as DEFAULT_LABEL_MAP
from prod9.modalities import MODALITIES as MODALITIES
from prod9.modalities import SEG as SEG
from prod9.modalities import TOKENS as TOKENS
from prod9.volumes import Channel

_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
# "t1ce" holds "t1", "t2f" holds "t2": the pattern tries the longest first.
_LAST_TOKEN = re.compile(rf"(?:^|[-_. ])({'|'.join(sorted(TOKENS, key=len, reverse=True))})$", re.IGNORECASE)

# Words before "seg": a lesion, as expected of a segmentation here, or another structure of the head.
_LESION_WORDS = r"(?:brats|lesions?|tumou?rs?|glioma|glioblastoma|gbm|cancer|metastas[ei]s|mets)"
LESION = re.compile(_LESION_WORDS, re.IGNORECASE)
"""Words in the names of files that show lesions."""
_OTHER = (
    r"(?:tissues?|aseg|aparc(?:[-_. +]aseg)?|wmparc|parc(?:ellation)?s?|brain|brain[-_ ]?parenchyma|head|skull|scalp"
    r"|synth|wm|gm|csf|pve|fast|atlas|anat(?:omy|omical)?|structures?|subcort(?:ical)?|cortex|cortical|hippocamp(?:us|i)"
    r"|ventricles?|vessels?|thalam(?:us|i)|cerebellum|brain[-_ ]?stem|bet|hd[-_ ]?bet|free[-_ ]?surfer|fast[-_ ]?surfer"
    r"|fmriprep|smriprep|synth[-_ ]?seg|samseg|lobes?|organs?|bones?|muscles?|healthy)"
)
_BEFORE_SEG = re.compile(
    rf"(?:^|[-_. ])(?:(?P<lesion>{_LESION_WORDS})|(?P<other>{_OTHER}))[-_. ]*$", re.IGNORECASE
)
_LESION_MAP = re.compile(rf"(?:^|[-_. ]){_LESION_WORDS}[-_. ]?segmentation$", re.IGNORECASE)
_LABEL_MAP = re.compile(
    r"(?:^|[-_. ]|synth|brain|lesion|tissue|tumou?r)(?:segm?|segmentations?|[ad]seg|probseg|(?:a|wm)?parc|labels?|roi"
    r"|[a-z]*masks?|tissues?|pve(?:seg)?[-_]?\d*)$",
    re.IGNORECASE,
)
# The challenges of 2012 to 2015: VSD.Brain.XX.O.MR_T1c.54514, VSD.Brain_3more.XX.O.OT.54517.
_VSD = re.compile(r"VSD\.Brain.*\.(?:MR_(T1c|T1|T2|Flair)|OT)\.\d+", re.IGNORECASE)
_OTHER_FOLDER = re.compile(
    r"tissues?|aseg|(?:w?m?|a)parc|(?:fast|free)[-_ ]?surfer.*|f?s?mriprep.*|synth[-_ ]?seg.*|samseg.*|cat12.*|spm.*"
    r"|brain[-_ ]?masks?|atlas(?:es)?|parcellations?|probseg",
    re.IGNORECASE,
)
_OTHER_MASK = re.compile(
    rf"(?:aseg|aparc|wmparc|parc|probseg|synthseg|tissues?|brain[-_ ]?mask|brain[-_ ]?seg|(?:^|[-_. ]){_OTHER}[-_. ]?"
    r"(?:dseg|mask|roi|labels?|seg|segmentation))$",
    re.IGNORECASE,
)
_EXPERT = re.compile(
    rf"(?:(?:gt|ground[-_. ]?truth|manual|expert|consensus|final|whole|corrected|mask|labels?|{_LESION_WORDS})"
    r"[-_. ]*)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Identity:
    """The case and patient of a scan: ``case_id`` in the official spelling, one ``patient_id`` for all time points."""

    case_id: str
    patient_id: str
    time_point: str | None
    year: str | None

    def case(
        self,
        *,
        images: dict[str, Path],
        seg: Path | None,
        layout: str,
        label_scheme: str,
        channels: Mapping[str, Channel] | None = None,
    ) -> Case:
        """Return the case of this scan with its files.

        Args:
            images: modality → file.
            seg: its segmentation; None without one.
            layout: a key of ``LAYOUTS``.
            label_scheme: what the values of ``seg`` mean.
            channels: modality → volume of a 4D file.
        """
        return Case(
            case_id=self.case_id,
            patient_id=self.patient_id,
            images=images,
            seg=seg,
            layout=layout,
            label_scheme=label_scheme,
            time_point=self.time_point,
            channels=channels or {},
        )


@dataclass(frozen=True)
class ParsedName:
    """The parts of a file name. stem: the part before the modality. kind: a modality or ``seg``."""

    stem: str
    kind: str
    identity: Identity


def _official(challenge: str) -> str:
    """Return the official spelling of a challenge since 2023: upper case but for GoAT."""
    return "GoAT" if challenge.upper() == "GOAT" else challenge.upper()


# Year → (pattern of a whole case name, its patient, the official spelling of the word in it, what joins the visit).
_YEARS: Mapping[str, tuple[str, str, Callable[[str], str], str]] = {
    "brats2015": (r"brats_(?P<word>2013|tcia)_pat(?P<n>\d+)_(?P<visit>\d+)", "brats_{word}_pat{n}", str.lower, "_"),
    "brats2018": (r"Brats(?P<n>1[78])_(?P<word>[A-Z0-9_]+)_(?P<visit>\d+)", "Brats{n}_{word}", str.upper, "_"),
    "brats2019": (r"Brats19_(?P<word>[A-Z0-9_]+)_(?P<visit>\d+)", "BraTS19_{word}", str.upper, "_"),
    "brats2020": (
        r"BraTS20_(?P<word>Training|Validation|Testing)_(?P<n>\d+)", "BraTS20_{word}_{n}", str.title, "_"
    ),
    "brats2021": (r"BraTS2021_(?P<n>\d+)", "BraTS2021_{n}", str.upper, "_"),
    "brats2023": (
        r"BraTS-(?P<word>[A-Z]+(?:-RT)?)-(?P<n>\d+)(?:-(?P<visit>\d+))?", "BraTS-{word}-{n}", _official, "-"
    ),
}  # fmt: skip
# A name of a challenge may go on, as in BraTS2021_00000_brain: what follows begins with a letter.
_PATTERNS = {
    year: re.compile(rf"{pattern}(?P<rest>[-_. ](?=[^\W\d]).+)?", re.IGNORECASE | re.ASCII | re.DOTALL)
    for year, (pattern, *_) in _YEARS.items()
}
_SHORT = re.compile(r"\d{1,4}|[A-Za-z]")


def is_volume(name: str) -> bool:
    """Return whether ``name`` is that of a NIfTI file, and not of a hidden file (macOS writes ``._x.nii``)."""
    return _SUFFIX.search(name) is not None and not name.startswith(".")


def bare(name: str) -> str:
    """Return ``name`` without ``.nii`` or ``.nii.gz``, in one Unicode spelling."""
    return unicodedata.normalize("NFC", _SUFFIX.sub("", name))


@lru_cache(maxsize=65536)
def identify(name: str) -> Identity:
    """Return case, patient and time point of a case called ``name``.

    Names of no known challenge keep their spelling; they are divided into patient and visit by
    :mod:`prod9.data.layouts.visits`, or name the patient as a whole.

    Example:
        >>> from prod9.data.layouts.names import identify
        >>> identify("brats-gli-00000-001").patient_id
        'BraTS-GLI-00000'
    """
    name = unicodedata.normalize("NFC", name)
    for year, (_, named, spell, joint) in _YEARS.items():
        match = _PATTERNS[year].fullmatch(name)
        if match is not None:
            parts = match.groupdict()
            patient = named.format_map({**parts, "word": spell(parts.get("word", ""))})
            visit = parts.get("visit")
            case = patient if visit is None else f"{patient}{joint}{visit}"
            return Identity(case + (parts["rest"] or ""), patient, visit, year)
    patient, time_point = split_visit(name) or (name, None)
    return Identity(name, patient, time_point, None)


def identify_folder(folders: Sequence[str]) -> Identity:
    """Return case, patient and time point of files that are identified by their folders alone.

    folders: names from the folder of the files up to the dataset's own, which names no patient. Folders such as
    ``anat`` are skipped; one that is only a visit or a number is joined to the folder above it:
    ``P001/2019-01-02/t1.nii.gz`` belongs to ``P001_2019-01-02``.
    """
    below = [name for name in folders[:-1] if not is_container(name)]
    if not below:
        return identify(next((name for name in reversed(folders) if not is_container(name)), folders[0]))
    parts = [below[0]]
    while (is_visit(parts[0]) or _SHORT.fullmatch(parts[0])) and len(parts) < len(below):
        parts.insert(0, below[len(parts)])
    return identify("_".join(parts))


def identify_file(stem: str, folders: Sequence[str]) -> Identity:
    """Return case, patient and time point of a file, by its name or, if that names no case, by its folders.

    stem: the name without its modality. folders: as for :func:`identify_folder`. ``P001/tp1_t1.nii.gz`` belongs to
    ``P001_tp1``.
    """
    if stem and not is_visit(stem):
        return identify(stem)
    return identify_folder([stem, *folders] if stem and stem != folders[0] else folders)


def visit_of_folders(folders: Sequence[str]) -> str | None:
    """Return the first of ``folders`` (nearest first) that is a visit and nothing else."""
    return next((name for name in folders if is_visit(name) and not is_container(name)), None)


def parse_modality(name: str) -> str | None:
    """Return the modality that a file name ends in (before ``.nii`` or ``.nii.gz``), ``seg``, or None.

    The longest token wins; letters may be of any case: ``BraTS_T1.nii.gz`` is T1, ``…-t1c.nii.gz`` is T1ce. A
    segmentation of tissue, the brain or another structure, such as ``P1_tissue_seg``, does not count.
    """
    found = _kind(bare(name))
    return None if found is None else found[0]


def shows_labels(name: str) -> bool:
    """Return whether a file is, by its name, a mask or labels of anything, hence not an image."""
    stem = bare(name)
    return parse_modality(name) == SEG or (
        parse_modality(name) is None and _LABEL_MAP.search(stem) is not None
    )


def says_other(name: str) -> bool:
    """Return whether a file is, by its name, a mask or labels of something other than a lesion."""
    stem = bare(name)
    return _OTHER_MASK.search(stem) is not None or (
        _LAST_TOKEN.search(stem) is not None and _kind(stem) is None
    )


def _kind(stem: str) -> tuple[str, str] | None:
    """Return modality or ``seg`` of a name, and the part of the name before it."""
    vsd = _VSD.fullmatch(stem)
    if vsd is not None:
        return TOKENS[(vsd[1] or SEG).lower()], ""
    whole = _LESION_MAP.search(stem)
    if whole is not None:
        return SEG, stem[: whole.start()]
    match = _LAST_TOKEN.search(stem)
    if match is None:
        return None
    kind, case = TOKENS[match[1].lower()], stem[: match.start()]
    before = _BEFORE_SEG.search(case) if kind == SEG else None
    if before is None:
        return kind, case
    if before["other"]:
        return None
    return kind, case[: before.start()] or case


def parse_name(name: str, *, folder: str = "", above: Sequence[str] = ()) -> ParsedName | None:
    """Take a file name apart, or return None if it does not end in a modality.

    Args:
        name: of the file.
        folder: name of its folder, which names the case if the file does not: a bare ``t1.nii.gz``, or case 355 of
            2020, whose mask kept its hospital name.
        above: the folders above that one, nearest first, up to the dataset's own.
    """
    found = _kind(bare(name))
    if found is None:
        return None
    kind, case = found
    if kind == SEG and any(_OTHER_FOLDER.fullmatch(part) for part in [folder, *above][:-1] or [folder]):
        return None
    own = identify(case)
    if folder and kind == SEG and own.year is None and identify(folder).year is not None:
        return ParsedName(case, kind, identify(folder))
    return ParsedName(case, kind, identify_file(case, [folder, *above]) if folder else own)


def is_expert(stem: str) -> bool:
    """Return whether the words before ``seg`` describe the segmentation instead of a case: ``GT``, ``manual_tumor``."""
    return _EXPERT.fullmatch(stem) is not None


def canonical_modality(name: str) -> str:
    """Return the modality that a dataset's own word means (``t1gd`` → ``T1ce``), or the word itself."""
    kind = parse_modality(name.strip())
    return name.strip() if kind in (None, SEG) else kind
