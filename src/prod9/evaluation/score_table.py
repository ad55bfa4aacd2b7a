"""The form of an evaluation's result: rows of scores, rows of cases, and the files they go to."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prod9 import __version__
from prod9.evaluation.sets.entries import LeftOut
from prod9.evaluation.sets.intervals import Floor, Interval
from prod9.files import atomic_write

FORMAT = 1
FILE = "evaluation.json"


@dataclass(frozen=True)
class Score:
    """One figure and all it takes to read it.

    group: ``paired``, ``distribution``, ``diversity``, ``appearance``, ``classifier`` or ``utility``. modality: or
    ``all``. better: ``higher``, ``lower``, or ``floor``, as near to the real volumes' own figure as can be.
    value: NaN where it is undefined, ``note`` saying why. num_generated, num_real: volumes; patients_generated,
    patients_real: whose they are, what floor and interval count. floor: real against real at the numbers of
    ``floor.matched``. reliable: False where there are too few patients to lean on it: a distance of Fréchet's kind in
    D ``dimensions`` below 2 D of them.
    """

    group: str
    metric: str
    value: float
    better: str
    num_generated: int
    num_real: int
    patients_generated: int | None = None
    patients_real: int | None = None
    modality: str = "all"
    region: str | None = None
    extractor: str | None = None
    dimensions: int | None = None
    interval: Interval | None = None
    floor: Floor | None = None
    unit: str = ""
    reliable: bool = True
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is written: no NaN, the interval and the floor taken apart."""
        low, high = self.interval or (math.nan, math.nan)
        matched, floor = (self.floor.matched, self.floor.value) if self.floor else (math.nan, math.nan)
        row = {
            "group": self.group,
            "metric": self.metric,
            "modality": self.modality,
            "region": self.region,
            "extractor": self.extractor,
            "value": self.value,
            "low": low,
            "high": high,
            "matched": matched,
            "floor": floor,
            "num_generated": self.num_generated,
            "num_real": self.num_real,
            "patients_generated": self.patients_generated,
            "patients_real": self.patients_real,
            "dimensions": self.dimensions,
            "better": self.better,
            "unit": self.unit,
            "reliable": self.reliable,
            "note": self.note,
        }
        return {name: finite(value) for name, value in row.items()}


@dataclass
class Evaluation:
    """What ``evaluation.json`` holds. scores, cases: rows of plain values.

    skipped: files that could not be used. patients: how many each set has. left_out:
    volumes that nothing is wrong with and that did not count.
    """

    command: str
    settings: Mapping[str, Any]
    sets: Mapping[str, Any]
    scores: Sequence[Mapping[str, Any]]
    cases: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Any] = ()
    left_out: Sequence[LeftOut] = ()
    warnings: list[str] = field(default_factory=list)
    patients: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "format": FORMAT,
            "command": self.command,
            "prod9": __version__,
            "settings": dict(self.settings),
            "sets": dict(self.sets),
            "patients": dict(self.patients),
            "skipped": [asdict(item) for item in self.skipped],
            "left_out": [asdict(item) | {"files": list(item.files)} for item in self.left_out],
            "warnings": list(self.warnings),
            "scores": list(self.scores),
            "cases": list(self.cases),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``evaluation.json``, ``scores.csv`` and, where there are cases, ``cases.csv``; return their paths.

        The JSON comes last: where it is, the tables are whole.
        """
        files = [folder / "scores.csv"]
        _write_csv(files[0], self.scores)
        if self.cases:
            files.append(folder / "cases.csv")
            _write_csv(files[-1], self.cases)
        files.append(folder / FILE)
        with atomic_write(files[-1]) as temporary:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return files


def finite(value: Any) -> Any:
    """Return ``value``, None in place of a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite_all(value: Any) -> Any:
    """Return :func:`finite` of every number in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {name: finite_all(inner) for name, inner in value.items()}
    return [finite_all(inner) for inner in value] if isinstance(value, list | tuple) else finite(value)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
