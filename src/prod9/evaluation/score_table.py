"""The result of an evaluation: rows of scores, rows of cases, and the files that hold them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prod9 import __version__
from prod9.evaluation.sets.entries import LeftOut
from prod9.evaluation.sets.intervals import Floor, Interval
from prod9.files import atomic_write
from prod9.json_files import without_nan, write_json

FORMAT = 1
FILE = "evaluation.json"
_COLUMNS = (
    "group", "metric", "modality", "region", "extractor", "value", "low", "high", "matched", "floor", "num_generated",
    "num_real", "patients_generated", "patients_real", "dimensions", "better", "unit", "reliable", "note",
)  # fmt: skip
"""Columns of ``scores.csv``, in order."""


@dataclass(frozen=True)
class Score:
    """One figure, with everything that is needed to read it.

    Attributes:
        group: ``paired``, ``samples``, ``distribution``, ``diversity``, ``appearance``, ``denoised``, ``classifier``,
            ``control``, ``agreement``, ``covariates`` or ``utility``.
        metric: its name.
        value: NaN where it is undefined; ``note`` then gives the reason.
        better: ``higher``, ``lower``, or ``floor`` where the real volumes' own figure is best.
        num_generated: generated volumes.
        num_real: real volumes.
        patients_generated: patients of the generated volumes, which the floor and the interval count.
        patients_real: patients of the real volumes.
        modality: one modality, or ``all``.
        region: part of the volume that is scored.
        extractor: of the features that are compared.
        dimensions: of the features that are compared.
        interval: 95% interval.
        floor: real volumes against real ones, in numbers equal to those of ``floor.matched``.
        unit: of the value.
        reliable: False where there are too few patients, for a Fréchet distance fewer than 2 per dimension.
        note: remarks.
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
        """Return the row as it is written: without NaN, and with interval and floor in columns of their own."""
        low, high = self.interval or (math.nan, math.nan)
        matched, floor = (self.floor.matched, self.floor.value) if self.floor else (math.nan, math.nan)
        known = vars(self) | {"low": low, "high": high, "matched": matched, "floor": floor}
        return without_nan({name: known[name] for name in _COLUMNS})


@dataclass
class Evaluation:
    """What ``evaluation.json`` holds.

    Attributes:
        command: the command that wrote it.
        settings: what was asked for.
        sets: paths and sizes of the sets.
        scores: rows of plain values.
        cases: rows of plain values, one for each case and region.
        curves: named curves: plain values with the coordinates of their points.
        skipped: files that could not be used.
        left_out: volumes without a fault that did not count.
        warnings: sentences.
        patients: number of patients in each set.
    """

    command: str
    settings: Mapping[str, Any]
    sets: Mapping[str, Any]
    scores: Sequence[Mapping[str, Any]]
    cases: Sequence[Mapping[str, Any]] = ()
    curves: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Any] = ()
    left_out: Sequence[LeftOut] = ()
    warnings: list[str] = field(default_factory=list)
    patients: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"format": FORMAT, "prod9": __version__, **asdict(self)}

    def write(self, folder: Path) -> list[Path]:
        """Write ``scores.csv``, ``cases.csv`` where there are cases, and ``evaluation.json``; return their paths.

        The JSON file comes last: where it exists, the tables are complete.
        """
        files = [folder / "scores.csv"]
        _write_csv(files[0], self.scores)
        if self.cases:
            files.append(folder / "cases.csv")
            _write_csv(files[-1], self.cases)
        files.append(folder / FILE)
        write_json(files[-1], self.to_dict())
        return files


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
