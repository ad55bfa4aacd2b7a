"""Divides the name of a scan into patient and visit.

Datasets write visits in many ways: ``P001_tp1``, ``100001_time1``, ``sub-01_ses-02``, ``P7_2019-01-02``,
``baseline_P7``, ``UPENN-GBM-00001_11``. The patient is the part before the visit or, if there is none, the part after
it. A wrong guess either merges patients or leaks one patient into training and test, so ``prod9 data check`` lists
what was guessed: see :func:`visit_groups` and :func:`look_alikes`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

_GAP = r"[-_. ]"
_END = rf"(?=$|{_GAP})"
_NUMBER = rf"(?:{_GAP}?\d{{1,4}}[a-z]?|{_GAP}[a-z]|{_GAP}?[ivx]{{1,4}})"
_LONG_UNIT = r"(?:months?|mon|mo|mths?|weeks?|wks?|days?|years?|yrs?)"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
_YEAR, _TWO = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])"
_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_CLOCK = rf"(?:[T_. -]?(?:[01]\d|2[0-3])[-:.]?[0-5]\d(?:[-:.]?[0-5]\d)?{_END})?"
_DATE = (
    rf"(?:{_YEAR}{_TWO}{_DAY}|{_YEAR}-{_TWO}-{_DAY}|{_YEAR}_{_TWO}_{_DAY}|{_YEAR}\.{_TWO}\.{_DAY}"
    rf"|(?:{_DAY}-{_TWO}|{_TWO}-{_DAY})-{_YEAR}|(?:{_DAY}_{_TWO}|{_TWO}_{_DAY})_{_YEAR}"
    rf"|(?:{_DAY}\.{_TWO}|{_TWO}\.{_DAY})\.{_YEAR}"
    rf"|\d{{1,2}}{_GAP}?{_MONTH}{_GAP}?{_YEAR}|{_YEAR}{_GAP}?{_MONTH}(?:{_GAP}?\d{{1,2}})?){_CLOCK}"
)
_STAGE = (
    r"(?:follow[-_. ]?ups?|fup|fu|baseline|base[-_. ]line|bsl|bl|screening|recurrence|recurrent|relapse|progression"
    r"|nadir|initial|(?:pre|post|intra)[-_. ]?(?:ops?|operative(?:ly)?|operation|surg(?:ery|ical)?|treat(?:ment)?"
    r"|tx|rx|rt|crt|radiation|radiotherapy|chemo(?:therapy)?|therapy|resection|biopsy|contrast)|pre|post)"
)
_SURE = (
    rf"(?:{_DATE}"
    rf"|(?:ses|sess|session)(?:{_GAP}[a-z0-9]+|\d[a-z0-9]*)"
    rf"|(?:visit|vis|time[-_. ]?points?|time|tp|cycle){_NUMBER}"
    rf"|{_LONG_UNIT}{_NUMBER}(?:{_GAP}\d{{1,2}}(?!\d))?"
    rf"|(?:\d{{1,4}}|[1-9]\d?{_GAP}){_LONG_UNIT}(?!{_GAP}?\d)"
    rf"|\d(?:st|nd|rd|th){_GAP}?(?:visit|scan|session|exam|time[-_. ]?point|follow[-_. ]?up)"
    rf"|{_STAGE}(?:\d{{1,4}}[a-z]?)?)"
)
_WORD = r"scan|exam|examination|study|mri|mr|re[-_. ]?scan|run|rep|repeat|series|acq"
_WEAK = (
    rf"(?:(?:{_WORD}|[mwyvt]){_GAP}?\d{{1,2}}[a-z]?|m1\d\d|d\d{{1,4}}"
    r"|\d{1,3}[mwdy]|\d(?:st|nd|rd|th)|(?:re[-_. ]?)?(?:test|scan)|first|second|third|prior|previous"
    r"|current|last|final|early|late|before|after|old|new|(?:19|20)\d\d-(?:0[1-9]|1[0-2]))"
)
"""Words that mean a visit only after a part with a number, as in ``P001_m06``; ``HC_M001`` is a patient."""

_FLAGS = re.IGNORECASE | re.ASCII
_SURE_VISIT = re.compile(rf"(?:(?:^|(?<={_GAP}))|(?<=\d)(?=[a-z])){_SURE}{_END}", _FLAGS)
_WEAK_VISIT = re.compile(rf"(?<={_GAP}){_WEAK}{_END}", _FLAGS)
_LOOK = re.compile(rf"(?<={_GAP})(?:{_WEAK}|(?:{_WORD}|[mwdyvt]){_GAP}?\d+){_END}", _FLAGS)
_WHOLE = re.compile(rf"(?:{_SURE}|{_WEAK})(?:{_GAP}(?:{_SURE}|{_WEAK}))*", _FLAGS)
_IDENTIFYING = re.compile(r"[a-z]+[-.]?\d|\d[a-z]|\d{3}", _FLAGS)
_NAMED = re.compile(rf"{_GAP}(?:sub|subj|subject|patient|pat|pt|p|case|id){_GAP}?\d+{_END}", _FLAGS)
_ENTITY = re.compile(
    r"[-_. ](?:run|acq|rec|dir|echo|desc|space|res|ce|task|part|mod|inv|chunk)-[a-z0-9+]+", _FLAGS
)
# Collections whose names are two numbers: the patient, then the visit.
_PATIENTS = re.compile(
    r"(TCGA-\w\w-\w{4}|OAS\d_\d{4}|UPENN-GBM-\d{5}|UCSF-PDGM-\d{4,5}|RHUH-\d{4}|\d{3}_S_\d{4})(?:[-_. ](.+))?",
    _FLAGS,
)
# The first word that ends in a digit, and what follows it: P001_x, sub-01-x, P001a.
_LED = re.compile(r"((?:[^-_. ]*[^-_. \d][-_. ]+)*[^-_. ]*\d)(?:[-_. ].+|[a-z])", _FLAGS | re.DOTALL)
_FRONT = re.compile(rf"(?:{_WEAK}){_GAP}+(.*\d.*)", _FLAGS | re.DOTALL)
_LETTER = re.compile(r"[a-z]\d+", _FLAGS)
_CONTAINERS = re.compile(
    r"anat|nii|nifti|mri?|mr images?|images?|imag(?:es|ing)|imagest[rs]|data|raw|rawdata|source(?:data)?|derivatives"
    r"|native|atlas|scans?|volumes?|(?:pre)?processed|registered|(?:co)?reg|skull[-_ ]?strip(?:ped)?|brain"
    r"|orig(?:inal)?|train(?:ing)?|val(?:id|idation)?|test(?:ing)?|hgg|lgg|all|files|dicom|vsd\..*",
    _FLAGS,
)
_LONGEST = 255
"""Most characters of a file name; longer texts come from lists and are not file names."""
MANY = 24
"""Most visits that one patient is expected to have; larger groups are taken for the patients of one site."""


def split_visit(name: str) -> tuple[str, str] | None:
    """Return (patient, visit) of a case's name, or None if no part of it is a visit or if all of it is.

    Example:
        >>> from prod9.data.layouts.visits import split_visit
        >>> split_visit("P001_tp1")
        ('P001', 'tp1')
    """
    if len(name) > _LONGEST:
        return None
    known = _PATIENTS.fullmatch(name)
    if known is not None:
        return (known[1], known[2]) if known[2] else None
    match = _SURE_VISIT.search(name)
    weak = next((m for m in _WEAK_VISIT.finditer(name) if re.search(r"\d", name[: m.start()])), None)
    if match is None or (weak is not None and weak.start() < match.start()):
        match = weak or match
    if match is None:
        return None
    before, after = (_trim(part) for part in (name[: match.start()], name[match.end() :]))
    patient = before
    if not before or _comes_behind(before, _ENTITY.sub("", f"_{after}")):
        # "baseline_P7", "siteA_tp1_P7": the patient comes after the visit.
        rest = _trim(f"{before}_{after}") if after else ""
        if not rest:
            return None
        deeper = split_visit(rest)
        patient, more = deeper if deeper is not None else (rest, "")
        return _trim(_ENTITY.sub("", patient)), f"{match[0]}_{more}".rstrip("_")
    return _trim(_ENTITY.sub("", patient)) or patient, match[0]


def _comes_behind(before: str, after: str) -> bool:
    """Return whether the patient stands after a visit, and something else, such as a site, before it."""
    if _NAMED.search(after) is not None:
        return _NAMED.search(f"_{before}") is None
    return re.search(r"\d", before) is None and _IDENTIFYING.search(after) is not None


def is_visit(name: str) -> bool:
    """Return whether ``name`` is a visit and nothing else, as ``week-000-1`` and ``2019-01-02`` are."""
    return _WHOLE.fullmatch(name) is not None


def is_container(name: str) -> bool:
    """Return whether ``name`` is that of a kind of folder, such as ``anat`` or ``train``, not of a patient or visit."""
    return _CONTAINERS.fullmatch(name) is not None


def visit_groups(cases: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return patient → cases for the patients whose name was guessed from the names of their cases."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case, patient in cases:
        groups[patient].append(case)
    return {patient: names for patient, names in groups.items() if any(name != patient for name in names)}


def look_alikes(patients: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Return groups of patients whose names may be visits of one patient: what they share → their names.

    ``P001_1`` and ``P001_x``, ``P001a`` and ``P001b``, ``p7`` and ``P7``, ``v1_P7`` and ``v2_P7``, ``Trial_scan1`` and
    ``Trial_scan2``, and names of a visit without a patient, such as ``2019-01-02``. Groups of more than ``MANY`` are
    left out: they are the numbered patients of a site.
    """
    names = sorted(set(patients))
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[f"same letters: {name.casefold()}"].add(name)
        if len(name) > _LONGEST or _PATIENTS.fullmatch(name):
            continue
        led, front, weak = _LED.fullmatch(name), _FRONT.fullmatch(name), _LOOK.search(name)
        if is_visit(name) and not _LETTER.fullmatch(name):
            groups[""].add(name)
        elif front is not None:
            groups[_trim(front[1])].add(name)
        elif weak is not None:
            groups[_trim(name[: weak.start()])].add(name)
        elif led is not None:
            groups[_trim(led[1])].add(name)
    for name in names:
        if name in groups:
            groups[name].add(name)
    return {key: sorted(group) for key, group in groups.items() if 1 < len(group) <= MANY}


def _trim(text: str) -> str:
    return text.strip("-_. ")
