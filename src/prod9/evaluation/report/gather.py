"""Read the configs, logs, versions and scores of the runs in a folder. Nothing is computed and no model loaded."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prod9.errors import DataError
from prod9.evaluation.report.forms import Result, mapping, number, objects, parse
from prod9.modalities import SEG
from prod9.stages import CORRECTORS

Curves = dict[str, list[tuple[float, float]]]
_DEPTH = 3


@dataclass(frozen=True)
class RunRecord:
    """The records of one training run. Parts that are missing are empty.

    Attributes:
        folder: of the run.
        name: path below the folder of the report.
        stage: of training.
        config: as written, with every default.
        config_text: the same as text.
        sessions: of ``run.json``.
        metrics: of the best checkpoint, or the last one.
        best: the best checkpoints.
        curves: logged values by step.
        hashes: checkpoint name → SHA-256.
        split: number of patients in each part.
        sample: the last picture of training.
    """

    folder: Path
    name: str
    stage: str
    config: dict[str, Any]
    config_text: str
    sessions: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    best: list[dict[str, Any]] = field(default_factory=list)
    curves: Curves = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)
    sample: Path | None = None

    @property
    def kind(self) -> str:
        """Kind of its model."""
        return str(self.config.get("model", {}).get("kind", ""))

    @property
    def grid(self) -> str:
        """Voxels along each axis, as text."""
        return " × ".join(str(side) for side in self.data.get("grid") or ())

    @property
    def spacing(self) -> str:
        """Voxel size in mm, as text."""
        return " × ".join(f"{mm:g}" for mm in self.data.get("spacing") or ())

    @property
    def data(self) -> dict[str, Any]:
        """The section ``data`` of its config."""
        return self.config.get("data", {})

    @property
    def steps(self) -> int:
        """Steps trained."""
        return max((int(number(s.get("to_step"))) for s in self.sessions), default=0)

    @property
    def seconds(self) -> float:
        """Seconds of all sessions."""
        return sum(number(s.get("seconds")) for s in self.sessions)


def find_runs(folder: Path) -> list[RunRecord]:
    """Return the runs of ``folder``: itself, or those below it, in the order of the stages they build on.

    Those on label maps come last: the page shows held-out scans, which are those of its first run.

    Raises DataError where there is none.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a run folder, or one that holds runs, got nothing there; check the path."
        )
    runs = [read_run(path.parent, folder) for path in _below(folder, "config.yaml")]
    if not runs:
        raise DataError(
            f"{folder}: expected a run folder with config.yaml, or one that holds runs, got neither; name what a "
            "training command or `prod9 demo` wrote."
        )
    order = ("autoencoder", "maisi_vae", "transformer", "maisi_diffusion", *CORRECTORS)
    return sorted(
        runs,
        key=lambda r: (
            list(r.data.get("modalities", ())) == [SEG],
            order.index(r.stage) if r.stage in order else len(order),
            r.name,
        ),
    )


def read_run(folder: Path, root: Path) -> RunRecord:
    """Return the records of one run; damaged logs and records count as missing, a damaged config is an error."""
    config, text = _read_config(folder / "config.yaml")
    metrics = read_json(folder / "metrics.json")
    split = read_json(folder / "split.json")
    samples = sorted((folder / "samples").glob("*.png"))
    digests = [
        (path, path.read_text(encoding="utf-8", errors="replace").split())
        for path in (folder / "checkpoints").glob("*.sha256")
    ]
    name = folder.relative_to(root).as_posix() if folder != root else folder.resolve().name
    return RunRecord(
        folder=folder,
        name=name,
        stage=str(config["stage"]),
        config=config,
        config_text=text,
        sessions=objects(read_json(folder / "run.json").get("runs")),
        metrics={
            k: v for k, v in mapping(metrics.get("metrics")).items() if math.isfinite(number(v, math.nan))
        },
        best=objects(metrics.get("best")),
        curves=read_curves(folder / "logs"),
        hashes={path.name.removesuffix(".sha256"): words[0] for path, words in digests if words},
        split={
            part: len(split[part]) for part in ("train", "val", "test") if isinstance(split.get(part), list)
        },
        sample=samples[-1] if samples else None,
    )


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the config of a run and its text; DataError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        config = dict(yaml.safe_load(text))
        sections = [config[name] for name in ("data", "model") if name in config]
        if "stage" not in config or not all(isinstance(section, dict) for section in sections):
            raise ValueError("a file without stage, or with data or model that is no section")
        for name in ("grid", "spacing", "modalities"):
            if not isinstance(mapping(config.get("data")).get(name), list | tuple | type(None)):
                raise ValueError(f"data.{name} that is no list")
        spacing = mapping(config.get("data")).get("spacing") or []
        if not all(isinstance(mm, int | float) for mm in spacing):
            raise ValueError("data.spacing that holds no numbers")
    except (OSError, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected the config of a run, got {error}.") from error
    return config, text


def read_curves(logs: Path) -> Curves:
    """Return every logged value by step, from the JSON lines of a run or else from its CSV files."""
    curves: dict[str, dict[float, float]] = {}
    rows = _json_lines(logs) if any(logs.rglob("*.jsonl")) else _csv_rows(logs)
    for row in rows:
        try:
            step = float(row.get("step") or "nan")
        except (TypeError, ValueError, OverflowError):
            continue
        for name, text in row.items():
            if name and name != "step" and text not in (None, ""):
                _note(curves, name, step, text)
    return {name: sorted(points.items()) for name, points in curves.items() if len(points) > 1}


def find_results(
    folders: list[Path], name: str, form: type[Result]
) -> tuple[list[tuple[Path, Result]], list[str]]:
    """Return the results called ``name`` in and below ``folders``, and a sentence for each file that is damaged."""
    paths = dict.fromkeys(path.resolve() for folder in folders for path in _below(folder, name))
    found, problems = [], []
    for path in paths:
        result = parse(read_json(path), form)
        if isinstance(result, str):
            problems.append(
                f"{path}: expected what prod9 writes under this name, got something else ({result})"
            )
        else:
            found.append((path, result))
    return found, problems


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in ``path``; empty without a file, or for any other content."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _below(folder: Path, name: str) -> Iterator[Path]:
    for depth in range(_DEPTH):
        yield from sorted(folder.glob("*/" * depth + name))


def _json_lines(logs: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(logs.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _csv_rows(logs: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(logs.rglob("metrics.csv")):
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            try:
                yield from csv.DictReader(file)
            except csv.Error:  # the rows before the damage count
                continue


def _note(curves: dict[str, dict[float, float]], name: str, step: float, text: Any) -> None:
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return
    if math.isfinite(value) and math.isfinite(step):
        curves.setdefault(name, {})[step] = value
