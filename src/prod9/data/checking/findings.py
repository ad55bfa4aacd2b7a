"""Findings of a check, each with the file and the remedy in its message."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: an error stops training or spoils it, a warning needs a decision, a note needs nothing.
        code: short and stable, for programs.
        message: for people, with file and remedy.
        case: the case that it concerns, if it is only one.
    """

    level: Level
    code: str
    message: str
    case: str | None = None


def error(code: str, message: str, case: str | None = None) -> Finding:
    """Return an error."""
    return Finding("error", code, message, case)


def warning(code: str, message: str, case: str | None = None) -> Finding:
    """Return a warning."""
    return Finding("warning", code, message, case)


def note(code: str, message: str, case: str | None = None) -> Finding:
    """Return a note."""
    return Finding("note", code, message, case)


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings each level has."""
    found = Counter(finding.level for finding in findings)
    return {level: found[level] for level in LEVELS}
