"""The tables and tiles of a report, from evaluation.json and the demo's metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prod9.evaluation.report.charts import interval_bar

_TILES = (
    ("psnr_brain", "{:.1f} dB", "PSNR of held-out brains after the autoencoder"),
    ("ssim_brain", "{:.2f}", "SSIM of held-out brains after the autoencoder"),
    ("modality_accuracy", "{:.0%}", "of generated volumes show the modality asked for"),
    ("diversity_ratio", "{:.2f}", "diversity of generated volumes, held-out patients being 1"),
    ("frechet_ratio", "{:.2f}", "Fréchet distance, that of training patients being 1"),
    ("dice_whole_tumour", "{:.2f}", "Dice of generated tumours with those asked for"),
)
"""Figure, its form and its words."""
_BESIDE = {
    "psnr_brain": ("psnr_brain_pca", "PCA codec of equal rate {:.1f} dB"),
    "dice_whole_tumour": ("dice_whole_tumour_base", "without control {:.2f}"),
}


@dataclass(frozen=True)
class Tile:
    """A key figure: its value as text, what it is, and what to compare it with."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text. numeric: columns that are aligned to the right; drawn: those that hold SVG instead."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: frozenset[int] = field(default_factory=frozenset)
    note: str = ""
    drawn: frozenset[int] = field(default_factory=frozenset)


def demo_tiles(metrics: dict[str, Any]) -> list[Tile]:
    """Return the key figures of a demo."""
    stages, tiles = metrics.get("stages", {}), []
    for key, form, words in _TILES:
        # Stages are called differently in the two families; the first one that has the figure is meant.
        values = next((stage for stage in stages.values() if key in stage), {})
        if isinstance(values.get(key), float):
            other, note = _BESIDE.get(key, ("", ""))
            beside = note.format(values[other]) if isinstance(values.get(other), float) else ""
            tiles.append(Tile(form.format(values[key]), words, beside))
    return tiles


def demo_tables(metrics: dict[str, Any]) -> list[Table]:
    """Return every figure of a demo, stage by stage, beside those before fine-tuning where there are any."""
    before = metrics.get("before_fine_tuning", {})
    tables = []
    for stage, values in metrics.get("stages", {}).items():
        flat, earlier = dict(_flat(values)), dict(_flat(before.get(stage, {})))
        rows = [
            [name, _short(value), *([_short(earlier[name]) if name in earlier else ""] if earlier else [])]
            for name, value in flat.items()
        ]
        head = ["figure", "value", *(["before fine-tuning"] if earlier else [])]
        note = "Measured on held-out patients only."
        tables.append(Table(f"Demo: {stage}", head, rows, frozenset(range(1, len(head))), note))
    return tables


def evaluation_tables(evaluation: dict[str, Any], source: str) -> list[Table]:
    """Return a table a group of the scores in ``evaluation``: what `prod9 evaluate` wrote."""
    scores = [row for row in evaluation.get("scores", []) if isinstance(row.get("value"), int | float)]
    groups = list(dict.fromkeys(str(row.get("group", "scores")) for row in scores))
    return [_scores(group, [row for row in scores if row.get("group") == group], source) for group in groups]


def _scores(group: str, rows: list[dict[str, Any]], source: str) -> Table:
    ranges = _ranges(rows)
    body = [
        [
            _words(row),
            _short(row["value"]) + (f" {row['unit']}" if row.get("unit") else ""),
            _interval(row),
            _short(row.get("floor")),
            _bar(row, *ranges[_family(row)]),
            row.get("note") or ("" if row.get("reliable", True) else "unreliable"),
        ]
        for row in rows
    ]
    note = (
        f"{source}. Intervals hold 95%; the orange tick and the column real against real tell what two sets of real "
        "volumes of these sizes score."
    )
    head = ["score", "value", "interval", "real against real", "", "note"]
    return Table(group.capitalize(), head, body, frozenset({1, 2, 3}), note, drawn=frozenset({4}))


def _bar(row: dict[str, Any], lowest: float, highest: float) -> str:
    return interval_bar(row["value"], row.get("low"), row.get("high"), lowest, highest, row.get("floor"))


def _ranges(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Return the range that the bars of one score share."""
    values: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        found = (row.get(key) for key in ("value", "low", "high", "floor"))
        values.setdefault(_family(row), []).extend(v for v in found if isinstance(v, int | float))
    return {key: (min(found), max(found)) for key, found in values.items()}


def _family(row: dict[str, Any]) -> tuple[str, ...]:
    return str(row.get("metric")), str(row.get("extractor"))


def _words(row: dict[str, Any]) -> str:
    keys = ("metric", "trained_on", "modality", "region", "extractor")
    return " · ".join(str(row[key]) for key in keys if row.get(key) not in (None, "all"))


def _interval(row: dict[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"{_short(low)} to {_short(high)}"


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        return [(prefix, values)]
    found = []
    for name, value in values.items():
        found += _flat(value, f"{prefix} · {name}" if prefix else str(name))
    return found


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
