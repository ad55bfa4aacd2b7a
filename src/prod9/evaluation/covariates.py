"""``prod9 evaluate covariates``: do generated volumes show the numbers that were asked for?

A network learns from real scans to read the numbers of a table, and is tested on held-out ones. What it reads from
generated volumes is compared with what was asked for, by rank correlation: no scale and no offset counts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9.data.covariates import rows_by_case
from prod9.data.layouts.datalist import read_table
from prod9.data.splits import Split
from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.regressor import train_reader
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.sets.entries import read_manifest
from prod9.evaluation.sets.intervals import Floor, Interval, score_interval
from prod9.evaluation.sets.members import number_members
from prod9.evaluation.sets.patients import grid_and_spacing
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, Preparation, find_volumes
from prod9.evaluation.settings import Report, SetSettings, silent
from prod9.json_files import without_nan
from prod9.measures.ranks import rank_correlation
from prod9.system.wording import listing

GROUP = "covariates"
_FEWEST = 8
"""Volumes of different values that a rank correlation needs."""
_CASE = "case"


@dataclass(frozen=True, kw_only=True)
class CovariateSettings(SetSettings):
    """What is asked for.

    Attributes:
        table: CSV with a column ``case`` and one per covariate, of the real cases.
        steps: training steps of the network of each modality.
    """

    table: str
    replicates: int = 1000
    steps: int = 400


def evaluate_covariates(
    real_root: Path,
    made_root: Path,
    settings: CovariateSettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
) -> Evaluation:
    """Compare what is read from generated volumes with what was asked for.

    Raises ConfigError without a split or without a covariate that both the table and the volumes have, DataError for
    folders and files that cannot be used.

    Args:
        real_root: folder of real patients.
        made_root: folder of ``prod9 generate label --set-covariate NAME=LOW:HIGH``.
        settings: what is asked for.
        device: where networks compute; the CPU by default.
        report: called with the progress of each part.
    """
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    made = find_volumes(made_root, modalities=settings.modalities, bad=bad)
    asked = _asked(made_root, made)
    names, known = _read_table(Path(settings.table), sorted({name for one in asked for name in one}))
    training, held_out = _divided(real_root, made_root, settings, made, known, bad)
    grid, spacing = grid_and_spacing(made[0], settings)
    read = partial(_read, preparation=Preparation(grid, spacing), bad=bad, report=report)
    rows: list[_Read] = []
    for modality in sorted({entry.modality for entry in made}):
        of = {
            part: [entry for entry in entries if entry.modality == modality]
            for part, entries in (("train", training), ("real", held_out), ("generated", made))
        }
        entries, images = read(f"{modality} of training patients", of["train"])
        reader = train_reader(
            images.to(device),
            _numbers([known[entry.case_id] for entry in entries], names).to(device),
            steps=settings.steps,
            seed=settings.seed,
            progress=partial(report, f"Reader of {modality}"),
        )
        wanted = {id(entry): values for entry, values in zip(made, asked, strict=True)}
        for part in ("real", "generated"):
            entries, images = read(f"{modality}, {part}", of[part])
            truth = [wanted[id(e)] if part == "generated" else known[e.case_id] for e in entries]
            found = reader.read(images.to(device)).cpu()
            rows.append(_Read(part, modality, entries, _numbers(truth, names), found))
    return Evaluation(
        command="evaluate covariates",
        settings={**asdict(settings), "grid": list(grid), "spacing": list(spacing)},
        sets={
            "real": {"path": str(real_root), "patients_trained_on": len({e.patient_id for e in training})},
            "generated": {"path": str(made_root), "volumes": len(made)},
            "heldout": {"path": str(real_root), "patients": len({e.patient_id for e in held_out})},
        },
        patients={"real": len({e.patient_id for e in held_out})},
        scores=[score.to_dict() for score in _scores(rows, names, settings)],
        cases=without_nan(list(_cases(rows, names))),
        skipped=bad.skipped,
        left_out=bad.left_out,
    )


@dataclass(frozen=True)
class _Read:
    """Volumes of one set and modality: what is true of them or was asked for, and what is read, ``[N K]`` each."""

    part: str
    modality: str
    entries: Sequence[Entry]
    truth: Tensor
    found: Tensor


# -- what is known, and asked for -----------------------------------------------------------------


def _asked(root: Path, entries: Sequence[Entry]) -> list[dict[str, float]]:
    """Return the numbers that each volume was asked for, by the manifest of its folder."""
    manifest = read_manifest(root)
    settings, files = manifest.get("settings"), manifest.get("files")
    common = settings.get("covariates") if isinstance(settings, dict) else None
    if not isinstance(common, dict) or not common or not isinstance(files, dict):
        raise ConfigError(
            f"{root}: expected volumes of `prod9 generate label --set-covariate NAME=LOW:HIGH`, got a folder whose "
            "manifest names no covariates; generate with some"
        )
    found = []
    for entry in entries:
        noted = files.get(entry.path.relative_to(root).as_posix(), {})
        own = {**common, **(noted.get("covariates") or {})} if isinstance(noted, dict) else common
        found.append({name: number for name, value in own.items() if (number := _number(value)) is not None})
    return found


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _read_table(path: Path, asked: Sequence[str]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Return the covariates that the table and the volumes have, and case → name → number."""
    header, rows = read_table(path)
    names = [name for name in asked if name in header]
    if _CASE not in header or not names:
        raise ConfigError(
            f"--table: expected columns {_CASE} and one of {listing(asked)}, got {', '.join(header)}; name the table "
            "that the model was trained with"
        )
    known: dict[str, dict[str, float]] = {}
    for case, (line, cells) in rows_by_case(path, header, rows, names).items():
        known[case] = {}
        for name, text in cells.items():
            value = _number(text) if text else None
            if text and (value is None or not math.isfinite(value)):
                raise DataError(
                    f"{path}: line {line}: expected a number for {name}, or an empty cell, got {text}; correct it."
                )
            if value is not None:
                known[case][name] = value
    return names, known


def _numbers(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Tensor:
    return torch.tensor([[row.get(name, float("nan")) for name in names] for row in rows])


def _divided(
    root: Path,
    made_root: Path,
    settings: CovariateSettings,
    made: Sequence[Entry],
    known: Mapping[str, Any],
    bad: BadFiles,
) -> tuple[list[Entry], list[Entry]]:
    """Return the real volumes to train on and to test on, of the modalities that were made.

    Args:
        root: folder of the real volumes.
        made_root: folder of the generated ones, which may be inside of it.
        settings: what is asked for.
        made: generated volumes.
        known: cases with a row in the table.
        bad: notes what is left out.
    """
    if settings.split is None or not Path(settings.split).is_file():
        raise ConfigError(
            f"--split: expected the split.json of the model's run, got {settings.split or 'none'}; name it: the "
            "network that reads covariates is tested on patients that it has not seen"
        )
    names = sorted({entry.modality for entry in made})
    entries = find_volumes(root, layout=settings.layout, modalities=names, without=made_root, bad=bad)
    split = Split.load(Path(settings.split))
    parts = []
    for what, patients in (("training", split.train), ("test", split.test)):
        own = [e for e in entries if e.patient_id in frozenset(patients) and known.get(e.case_id)]
        if len(own) < _FEWEST:
            raise DataError(
                f"{root}: expected at least {_FEWEST} {what} volumes of {settings.split} with a row in the table, got "
                f"{len(own)}; correct the paths, or hold out more patients."
            )
        parts.append(own)
    return parts[0], parts[1]


def _read(
    what: str, entries: Sequence[Entry], *, preparation: Preparation, bad: BadFiles, report: Report
) -> tuple[list[Entry], Tensor]:
    """Return those of ``entries`` that can be read, and their volumes ``[N 1 H W D]``; DataError for none."""
    kept, images = list[Entry](), list[Tensor]()
    for done, entry in enumerate(entries, 1):
        try:
            images.append(preparation.read(entry))
            kept.append(entry)
        except DataError as error:
            bad.report(entry, error)
        report(f"Reading {what}", done, len(entries))
    if not kept:
        raise DataError(f"expected at least one readable volume, {what}, got none.")
    return kept, torch.cat(images)


# -- scores ---------------------------------------------------------------------------------------


def _scores(rows: Sequence[_Read], names: Sequence[str], settings: CovariateSettings) -> Iterator[Score]:
    modalities = sorted({row.modality for row in rows})
    for place, name in enumerate(names):
        for modality in modalities:
            own = {row.part: row for row in rows if row.modality == modality}
            real = _correlation(own["real"], place, settings)
            for part in ("generated", "real"):
                value, interval, count = _correlation(own[part], place, settings)
                floor = Floor(value, real[0], (count, real[2])) if part == "generated" else None
                few = f"needs {_FEWEST} volumes of different values" if value != value else None
                yield Score(
                    group=GROUP,
                    metric=f"rank_correlation_{part}",
                    value=value,
                    better="higher",
                    num_generated=count,
                    num_real=real[2],
                    patients_generated=count,
                    patients_real=real[2],
                    modality=modality if len(modalities) > 1 else "all",
                    region=name,
                    interval=interval,
                    floor=floor,
                    note=few,
                )


def _correlation(row: _Read, place: int, settings: CovariateSettings) -> tuple[float, Interval | None, int]:
    """Return the rank correlation of truth and reading of one covariate, its interval, and the number of volumes."""
    known = ~row.truth[:, place].isnan()
    truth, found = row.truth[known, place].double(), row.found[known, place].double()
    if len(truth) < _FEWEST or len(truth.unique()) < _FEWEST:
        return float("nan"), None, len(truth)
    owners = [(entry.patient_id, "") for entry, there in zip(row.entries, known, strict=True) if there]
    if row.part == "generated":  # every sample is a patient of its own
        owners = [(str(entry.path), "") for entry, there in zip(row.entries, known, strict=True) if there]
    (members,) = number_members(owners)
    interval = score_interval(
        lambda chosen, _: rank_correlation(truth[chosen], found[chosen]),
        members,
        members,
        replicates=settings.replicates,
        seed=settings.seed,
        least=-1.0,
        most=1.0,
    )
    return rank_correlation(truth, found), interval, len(truth)


def _cases(rows: Sequence[_Read], names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        for entry, truth, found in zip(row.entries, row.truth.tolist(), row.found.tolist(), strict=True):
            for place, name in enumerate(names):
                yield {
                    "case": entry.case_id,
                    "modality": row.modality,
                    "set": row.part,
                    "covariate": name,
                    "true_or_asked": truth[place],
                    "read": found[place],
                }
