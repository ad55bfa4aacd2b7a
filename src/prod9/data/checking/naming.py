"""Findings about guesses: names that may be visits of one patient, and label values of several meanings."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prod9.data.cases import Case
from prod9.data.checking.findings import Finding, note, warning
from prod9.data.checking.voxels import CaseVoxels
from prod9.data.labels import doubt
from prod9.data.layouts.names import identify
from prod9.data.layouts.visits import MANY, look_alikes, visit_groups
from prod9.system.wording import listing, plural

_GUESSED = ("canonical", "datalist", "msd", "nnunet")
_DECLARED = ("msd", "nnunet")
_REMEDY = "name the patient of each case in a CSV list with a column patient"
_SHOWN_GROUPS = 5


def find_visits(cases: Sequence[Case]) -> Iterator[Finding]:
    """Find cases that count as visits of one patient by their names only, and those that may be visits but do not.

    Names of challenges and of BIDS leave no doubt.
    """
    groups = guessed_visits(cases)
    if groups:
        total, shown = sum(map(len, groups.values())), _groups(groups)
        text = (
            f"{plural(total, 'case')} {'counts as a visit' if total == 1 else 'count as visits'} of "
            f"{plural(groups, 'patient')}, by the names: {shown}; all visits of a patient are in one part of the split"
        )
        largest = max(map(len, groups.values()))
        if largest > MANY:
            yield warning(
                "visits",
                f"{text}. {plural(largest, 'visit')} of one patient are many: if they are of several patients, "
                f"{_REMEDY}.",
            )
        else:
            yield note("visits", f"{text}. If they are of other patients, {_REMEDY}.")
    alike = look_alikes(case.patient_id for case in _guessed(cases))
    if alike:
        shown = listing((listing(group) for group in alike.values()), _SHOWN_GROUPS, joint="; ")
        yield warning(
            "look-alikes",
            "names that may be visits of one patient count as different patients, who may be in different parts of "
            f"the split: {shown}. If they are visits, {_REMEDY}.",
        )


def guessed_visits(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Return patient → cases, for patients that were recognised in the names of their cases."""
    return visit_groups((case.case_id, case.patient_id) for case in _guessed(cases))


def _guessed(cases: Sequence[Case]) -> list[Case]:
    """Return the cases whose patient was guessed from a name; a list may say it instead."""
    names = [(case, identify(case.case_id)) for case in cases if case.layout in _GUESSED]
    return [case for case, name in names if name.year is None and name.patient_id == case.patient_id]


def find_doubtful_labels(cases: Sequence[Case], voxels: Sequence[CaseVoxels]) -> Iterator[Finding]:
    """Find label values with several meanings, over all cases with the same detected scheme."""
    layouts = {case.case_id: (case.label_scheme, case.layout) for case in cases}
    values: dict[str, set[int]] = defaultdict(set)
    for result in voxels:
        scheme, layout = layouts[result.case_id]
        if layout not in _DECLARED:
            values[scheme].update(result.seg_values)
    for scheme, seen in values.items():
        text = doubt(seen, scheme)
        if text is not None:
            # A mask of one value is hardly ever necrosis; other values mostly have the default meaning.
            make = warning if seen - {0} == {1} else note
            yield make("meaning", f"{text}.")


def _groups(groups: dict[str, list[str]]) -> str:
    largest_first = sorted(groups.items(), key=lambda item: -len(item[1]))
    texts = (f"{patient} ({listing(names)})" for patient, names in largest_first)
    return listing(texts, _SHOWN_GROUPS, joint="; ")
