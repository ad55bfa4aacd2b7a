"""What the checks of a folder and of a MedMNIST3D file have in common: findings, facts, and the table of both."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prod9.data.checking.findings import Finding, counts
from prod9.data.checking.voxels import CaseVoxels, label_summary, summarise
from prod9.errors import DataError
from prod9.modalities import MODALITIES
from prod9.system.shell import shown_line
from prod9.system.wording import plural


@dataclass(kw_only=True)
class AbstractReport(ABC):
    """What was found.

    Attributes:
        root: the folder or file that was checked.
        findings: what is wrong, or worth knowing.
        voxels: what a deep check read, in the order of the cases; empty without one.
    """

    root: Path
    findings: list[Finding] = field(default_factory=list)
    voxels: list[CaseVoxels] = field(default_factory=list)

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what is there, as plain values: the first part of :meth:`to_dict`."""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not counts(self.findings)["error"]

    def next_steps(self) -> list[tuple[str, str]]:
        """Return what to do next, as (words, command)."""
        root, number = self.root, counts(self.findings)["error"]
        codes, facts = {finding.code for finding in self.findings}, self.facts()
        steps: list[tuple[str, Sequence[object]]] = []
        if codes & {"grid", "unregistered", "outside"}:
            words = ["data", "preprocess", root, f"{root}_registered", "--no-strip"]
            steps.append(
                ("Register the scans of each patient (these words are for scans without skull):", words)
            )
        elif number:
            again = f"Repair {plural(number, 'error')} (their remedies are below), then check again:"
            steps.append((again, ["data", "check", root, "--deep"]))
        elif "few" in codes and any(facts.get("modalities", {}).get(name, 0) for name in MODALITIES):
            complete = all(facts["modalities"].get(name, 0) == facts["cases"] for name in MODALITIES)
            target = ["--target", MODALITIES[-1]] if complete else []
            words = [
                "generate",
                "translate",
                "--model",
                "demo/translate",
                "--patient",
                root,
                *target,
                "-o",
                "made",
            ]
            steps.append(("Too few to train on; use a packaged model:", words))
        else:
            steps.append(
                ("Write configs that fit these data and this machine:", ["plan", root, "-o", "plan"])
            )
        return [(text, shown_line(["prod9", *words])) for text, words in steps]

    def require_ok(self, what: str) -> None:
        """Raise DataError, with the first error, unless there is none. what: a dataset, or a file."""
        errors = [finding.message for finding in self.findings if finding.level == "error"]
        if errors:
            raise DataError(
                f"{self.root}: expected {what} without errors, got {len(errors)}; the first: {errors[0]}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **self.facts(),
            "deep": bool(self.voxels),
            "intensities": summarise(self.voxels),
            "labels": {str(label): row for label, row in label_summary(self.voxels).items()},
            "findings": [asdict(finding) for finding in self.findings],
            **{f"{level}s": number for level, number in counts(self.findings).items()},
        }


def facts_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table of a report's facts, as (name, text)."""
    patients = f"{report['cases']} of {plural(report['patients'], 'patient')}"
    if report["time_points"] > 1:
        patients += f", up to {plural(report['time_points'], 'time point')} each"
    modalities = [f"{name} {number}" for name, number in report["modalities"].items()]
    rows = [
        ("layout", _listed(report["names"]) if report["layout"] == "brats" else report["layout"]),
        ("labels", _listed(report["label_schemes"]) or "no segmentations"),
        ("cases", patients),
        ("volumes", ", ".join([*modalities, f"seg {report['segmentations']}"])),
        ("shape", _listed(report["shapes"])),
        ("spacing (mm)", _listed(report["spacings_mm"])),
        ("orientation", _listed(report["orientations"])),
        ("stored as", _listed(report["types"])),
    ]
    rows += [("split", _listed(report["parts"]))] if report["parts"] else []
    return rows + [
        (part, ", ".join(f"{name} {number}" for name, number in classes.items()))
        for part, classes in report.get("classes", {}).items()
    ]


def counted(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value occurs, the most frequent first."""
    return dict(Counter(values).most_common())


def _listed(table: dict[str, int]) -> str:
    if len(table) == 1:
        return next(iter(table))
    more = f" and {len(table) - 6} more" if len(table) > 6 else ""
    return ", ".join(f"{value} ({number})" for value, number in list(table.items())[:6]) + more
