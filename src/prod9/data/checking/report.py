"""Check a folder or a list of cases: everything that is known about it, as one report."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod9.data.cases import PARTS, Case
from prod9.data.checking.findings import Finding, error, note, warning
from prod9.data.checking.headers import Headers, check_headers, check_identity, millimetres, sides
from prod9.data.checking.naming import find_doubtful_labels, find_visits, guessed_visits
from prod9.data.checking.summary import AbstractReport, counted
from prod9.data.checking.voxels import find_backgrounds, find_doubles, read_cases
from prod9.data.layouts.find import Dataset, no_cases, require_known, scan_dataset
from prod9.data.layouts.names import MODALITIES
from prod9.data.layouts.scan import conversion, foreign_files
from prod9.data.splits import Split
from prod9.errors import DataError
from prod9.modalities import known_as
from prod9.system.progress import Progress
from prod9.system.wording import are, listing, plural

_OWN_NAMES = ("msd", "nnunet", "datalist")
"""Layouts that name their modalities themselves."""


@dataclass(kw_only=True)
class Report(AbstractReport):
    """What was found in a folder, or in a list of cases.

    Attributes:
        dataset: its cases.
        modalities: what every case must have.
        headers: of every volume that can be read.
    """

    dataset: Dataset
    modalities: tuple[str, ...]
    headers: Headers

    def facts(self) -> dict[str, Any]:
        """Return what is there, as plain values."""
        cases = self.dataset.cases
        time_points = Counter(case.patient_id for case in cases)
        return {
            "root": str(self.root),
            "layout": self.dataset.layout,
            "label_schemes": counted(case.label_scheme for case in cases if case.seg is not None),
            "names": counted(case.layout for case in cases),
            "cases": len(cases),
            "patients": len(time_points),
            "time_points": max(time_points.values(), default=0),
            "visits": guessed_visits(cases),
            "modalities": {m: sum(m in case.images for case in cases) for m in self.modalities},
            "segmentations": sum(case.seg is not None for case in cases),
            "shapes": self.headers.count(lambda h: sides(h.shape)),
            "spacings_mm": self.headers.count(lambda h: millimetres(h.spacing)),
            "orientations": self.headers.count(lambda h: h.orientation),
            "types": self.headers.count(lambda h: h.dtype.name),
            "parts": counted(case.part for case in cases if case.part is not None),
            "ignored_files": len(self.dataset.ignored),
        }


def check_dataset(
    root: str | Path,
    *,
    layout: str = "auto",
    label_scheme: str = "auto",
    modalities: Sequence[str] = (),
    split: Path | None = None,
    deep: bool = False,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Check the dataset at ``root`` and return what is there and what is wrong.

    Raises DataError only where there is nothing to check.

    Args:
        root: a folder, or a list of cases.
        layout: name of the layout, or ``auto``.
        label_scheme: what the values of the segmentations mean, or ``auto``.
        modalities: what every case must have; by default the four of BraTS, or what the dataset itself declares.
        split: a split file, whose patients are compared with those of the dataset.
        deep: read every voxel, not only the headers.
        num_workers: files that are read at a time, with ``deep``.
        progress: called after each case.
    """
    root = Path(root)
    dataset = scan_dataset(root, layout=layout, label_scheme=label_scheme)
    if not dataset.cases and not dataset.problems:
        raise DataError(no_cases(root))
    declared = dict.fromkeys(name for case in dataset.cases for name in case.images)
    modalities = [known_as(name, list(dict.fromkeys([*MODALITIES, *declared]))) for name in modalities]
    if modalities:
        require_known(dataset.cases, modalities)
    wanted = tuple(modalities) or (tuple(declared) if dataset.layout in _OWN_NAMES else MODALITIES)
    headers = check_headers(dataset.cases, progress=None if deep else progress)
    report = Report(root=root, dataset=dataset, modalities=wanted, headers=headers)
    report.findings += [error("layout", problem) for problem in dataset.problems]
    report.findings += [warning("link", doubt) for doubt in dataset.doubts]
    report.findings += _completeness(dataset.cases, wanted)
    report.findings += [*headers.findings, *check_identity(dataset.cases), *_division(dataset.cases, split)]
    report.findings += [*find_visits(dataset.cases), *_unused(root, dataset)]
    if deep:
        _look_inside(report, num_workers, progress)
        if label_scheme == "auto":
            report.findings += find_doubtful_labels(dataset.cases, report.voxels)
    return report


def _unused(root: Path, dataset: Dataset) -> Iterator[Finding]:
    """Note the volumes that belong to no case, and the images of other formats."""
    if dataset.ignored:
        count, names = len(dataset.ignored), listing(_below(root, dataset.ignored))
        verb = "belongs" if count == 1 else "belong"
        yield note("ignored", f"{plural(count, 'volume')} {verb} to no case: {names}")
    foreign = foreign_files(root) if root.is_dir() else []
    if foreign:
        yield warning(
            "format",
            f"{plural(foreign, 'image')} of other formats {are(foreign)} left out: {listing(_below(root, foreign))}; "
            f"{conversion(foreign[0])}.",
        )


def _below(root: Path, paths: Sequence[Path]) -> list[str]:
    return [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]


def _look_inside(report: Report, num_workers: int, progress: Progress | None) -> None:
    """Read the voxels and add their findings, except those that the headers gave already."""
    cases = report.dataset.cases
    report.voxels = list(read_cases(cases, num_workers=num_workers, progress=progress))
    known = {(finding.case, finding.message) for finding in report.findings}
    found = [f for result in report.voxels for f in result.findings] + list(find_doubles(report.voxels))
    found += find_backgrounds(report.voxels)
    report.findings += [f for f in found if (f.case, f.message) not in known]


def _completeness(cases: Sequence[Case], modalities: Sequence[str]) -> list[Finding]:
    findings = []
    nowhere = [name for name in modalities if not any(name in case.images for case in cases)]
    if nowhere and cases:
        there = [name for name in modalities if name not in nowhere]
        remedy = (
            f"train with data.modalities: [{', '.join(there)}]"
            if there
            else "name what there is with data.modalities (--modality)"
        )
        findings.append(warning("absent", f"no case has {', '.join(nowhere)}; {remedy}."))
    for case in cases:
        missing = [name for name in modalities if name not in case.images and name not in nowhere]
        if missing:
            folder = next(iter(case.images.values())).parent
            findings.append(
                error(
                    "missing",
                    f"{folder}: expected {', '.join(modalities)} for case {case.case_id}, {', '.join(missing)} "
                    f"{are(missing)} missing; add what is missing, remove the case, name fewer data.modalities, or "
                    "leave such cases out with data.skip_incomplete: true.",
                    case.case_id,
                )
            )
    segmented = [case for case in cases if case.seg is not None]
    if segmented and len(segmented) < len(cases):
        without = [case.case_id for case in cases if case.seg is None]
        findings.append(
            warning(
                "seg",
                f"{len(cases) - len(segmented)} of {plural(cases, 'case')} "
                f"{'has' if len(cases) - len(segmented) == 1 else 'have'} no segmentation ({listing(without)}).",
            )
        )
    return findings


def _division(cases: Sequence[Case], split: Path | None) -> list[Finding]:
    """Check that each patient is in one part only, by the dataset itself and by the split file."""
    findings: list[Finding] = []
    sides_of: dict[str, set[str]] = {}
    for case in cases:
        if case.part is not None:
            sides_of.setdefault(case.patient_id, set()).add(case.part)
    for patient, parts in sorted(sides_of.items()):
        if len(parts) > 1:
            where = " and ".join(part for part in PARTS if part in parts)
            findings.append(
                error("leak", f"patient {patient} is in {where}; all cases of a patient belong to one.")
            )
    if split is not None:
        try:
            Split.load(split).check(cases, source=str(split))
        except DataError as problem:
            findings.append(error("leak" if "several" in str(problem) else "split", str(problem)))
    return findings
