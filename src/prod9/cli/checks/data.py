"""The data checks of ``--check``, from headers alone: what training would refuse later, and what is doubtful."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prod9.cli.inputs import Inputs
from prod9.data.checking.headers import Headers, check_headers
from prod9.data.splits import PARTS, Part, Split, resolve_split
from prod9.errors import ConfigError, DataError
from prod9.stages import STAGES
from prod9.system.wording import are, plural

if TYPE_CHECKING:
    from prod9.cli.checks.run import What
    from prod9.config.schema import RunConfig
    from prod9.data.cases import Case

FEW = {"train": 8, "val": 2, "test": 1}
"""Fewer patients than these are worth a warning."""
_BLOCKING = ("unreadable", "grid")
"""Findings that training stops at; the others are worth a warning."""
_UPSAMPLED = 1.5
"""Voxels longer than those of the grid by this factor are worth a warning."""
_EMPTY = 2.0
"""A grid longer than the scans by this factor is worth a warning."""
_NEEDED: Mapping[str, tuple[Part, ...]] = {"train": ("train", "val"), "validate": ("val",), "test": ("test",)}


@dataclass(frozen=True)
class DataReport:
    """What was found.

    Attributes:
        files: number of files by shape and spacing.
        patients: number of patients by part.
        warnings: what is doubtful.
    """

    files: dict[str, int]
    patients: Mapping[str, int]
    warnings: list[str] = field(default_factory=list)


def check_data(config: "RunConfig", inputs: Inputs, base: Split | None, what: "What") -> DataReport:
    """Check the headers and the division of the patients; raises what training would raise.

    Args:
        config: of the run.
        inputs: its data.
        base: the division of its base, if there is one.
        what: ``train``, ``validate`` or ``test``.
    """
    files, warnings = inputs.files, []
    if inputs.cases:
        headers = check_headers(inputs.cases)
        files, warnings = _files(headers), _doubts(headers)
        warnings += _resolution(config, headers)
    counts, split = inputs.parts, None
    if counts is None:
        split = _split(config, inputs.cases)
        counts = {str(part): len(getattr(split, part)) for part in PARTS}
        _check_leak(split, base)
        _check_segmentations(config, split, inputs.cases, what)
    warnings += _check_parts(counts, what)
    return DataReport(files, counts, warnings)


def _files(headers: Headers) -> dict[str, int]:
    """Count files by shape and spacing; refuse what cannot be read and cases whose files lie on different grids."""
    blocking = [finding.message for finding in headers.findings if finding.code in _BLOCKING]
    if blocking:
        more = f" And {len(blocking) - 1} more; `prod9 data check` lists all." if len(blocking) > 1 else ""
        raise DataError(blocking[0] + more)
    found: Counter[str] = Counter()
    for kinds in headers.by_case.values():
        for header in kinds.values():
            sides = "×".join(map(str, header.shape))
            found[f"{sides} at {'×'.join(f'{mm:.2f}' for mm in header.spacing)} mm"] += 1
    return dict(found.most_common())


def _doubts(headers: Headers) -> list[str]:
    doubts = [
        f.message for f in headers.findings if f.level != "note" and f.code not in (*_BLOCKING, "spacings")
    ]
    more = (
        [f"data: {len(doubts) - 3} more of the kind; `prod9 data check` lists all."]
        if len(doubts) > 3
        else []
    )
    return [f"data: {text}" for text in doubts[:3]] + more


def _resolution(config: "RunConfig", headers: Headers) -> list[str]:
    """Compare the voxels and extents of the scans with the grid that the run works on."""
    scans = [next(iter(kinds.values())) for kinds in headers.by_case.values() if kinds]
    spacings = np.array([header.ras_spacing for header in scans])
    wanted = config.data.spacing
    if wanted is None:
        _require_one_spacing(headers, spacings)
        return []
    found: list[str] = []
    middle, target = np.median(spacings, axis=0), np.array(wanted)
    if (middle / target).max() > _UPSAMPLED:
        found.append(
            f"data.spacing: the scans have voxels of {_mm(middle)} mm and would be resampled to {_mm(target)} mm: more "
            "work, and no more detail; set data.spacing to theirs, with a data.grid to match (`prod9 plan` does)"
        )
    extents = np.median([sorted(np.multiply(h.shape, h.spacing)) for h in scans], axis=0)
    covered = np.sort(np.multiply(config.data.grid, wanted))
    if (covered / extents).max() > _EMPTY:
        found.append(
            f"data.grid: the grid covers {_mm(covered)} mm and the scans {_mm(extents)} mm, so most of it would be "
            "empty; choose a smaller one"
        )
    return found


def _require_one_spacing(headers: Headers, spacings: np.ndarray) -> None:
    names = [name for name, kinds in headers.by_case.items() if kinds]
    others = [k for k, row in enumerate(spacings) if not np.allclose(row, spacings[0], atol=1e-2)]
    if others:
        raise DataError(
            f"data.spacing: expected one spacing in all cases, since it is null, got {_mm(spacings[0])} mm in "
            f"{names[0]} and another in {plural(others, 'case')} ({names[others[0]]}: {_mm(spacings[others[0]])} mm); "
            "set data.spacing to resample."
        )


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def _split(config: "RunConfig", cases: "Sequence[Case]") -> Split:
    """Return the division that the run will use, without writing it."""
    from prod9.models.run_folder import holds_run

    folder = Path(config.output_dir)
    return resolve_split(
        cases,
        folder / "split.json",
        settings=config.data.split.kwargs(),
        trained=holds_run(folder),
        keep=False,
    )


def _check_parts(counts: Mapping[str, int], what: "What") -> list[str]:
    found = []
    for part in _NEEDED[what] if counts else ():
        number = counts.get(part, 0)
        if number == 0:
            raise ConfigError(
                f"data.split.{part}: expected at least one patient in the {part} split, got none; add cases, or raise "
                f"data.split.{part}."
            )
        if number < FEW[part]:
            use = {"train": "learn from", "val": "choose a checkpoint by", "test": "measure with"}[part]
            found.append(
                f"data: {plural(number, 'patient')} in the {part} split {are(number)} little to {use}; add cases, or "
                "see what comes out as a trial"
            )
    return found


def _check_leak(split: Split, base: Split | None) -> None:
    leaked = split.trained_elsewhere(base) if base is not None else []
    if leaked:
        raise ConfigError(
            "data.split: expected patients to be held out in all stages, but the base was trained on "
            f"{len(leaked)} that this run holds out ({', '.join(leaked[:5])}); use the same data.split, or set "
            "data.split.file to the split.json of the earlier run."
        )


def _check_segmentations(config: "RunConfig", split: Split, cases: "Sequence[Case]", what: "What") -> None:
    """Refuse parts without any segmentation where the run learns from them."""
    key = config.seg_key
    # A transformer weighs its loss by them in training alone; control networks are measured by them too.
    needed = (
        _NEEDED[what] if STAGES[config.stage].number == 3 else _NEEDED[what][:1] if what == "train" else ()
    )
    parts = needed if key is not None else ()
    for part in parts:
        if not any(case.seg is not None for case in split.select(cases, part)):
            raise ConfigError(
                f"{key}: expected segmentations to learn from, but no case of the {part} split in {config.data.root} "
                "has one; add them, or leave them out of the config."
            )
