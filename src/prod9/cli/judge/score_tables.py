"""Tables of an evaluation's scores on the screen."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prod9.cli import shared

if TYPE_CHECKING:
    from prod9.evaluation.score_table import Evaluation

ARROWS = {"higher": "↑", "lower": "↓", "floor": "="}
Row = Mapping[str, Any]
_KINDS = {"dice_steered": "steered", "dice_reconstructions": "real, reconstructed", "dice_real": "real"}


def print_scores(evaluation: "Evaluation") -> None:
    """Print one table for each group of scores over all modalities; the files hold the other scores."""
    groups: dict[str, list[Row]] = {}
    for row in evaluation.scores:
        shown = row["group"] == "covariates" or (row["group"] == "samples" and row["region"] == "brain")
        if row.get("modality", "all") == "all" or shown:
            groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        if group == "paired":
            totals = {"volumes": "num_generated", "patients": "patients_generated"}
            _print_by_region(
                rows, "paired", "metric", lambda row: f"{row['metric']} {ARROWS[row['better']]}", totals
            )
        elif group == "control":
            title = "control: Dice of what segmenters find with what was asked for"
            _print_by_region(rows, title, "volumes", _kind, {"patients": "patients_real"})
        elif group == "covariates":
            title = "covariates: rank correlation of what is read with what is true or was asked for"
            _print_by_region(rows, title, "volumes", _set_of, {"number": "num_generated"})
        elif group == "agreement":
            title = "agreement of modalities: score (real patients)"
            _print_by_region(
                rows,
                title,
                "metric",
                lambda row: row["metric"],
                {"patients": "patients_generated"},
                floor=True,
            )
        elif group == "samples":
            _print_samples(rows)
        elif group == "utility":
            title = "utility: Dice, and Dice over that of real"
            _print_by_region(rows, title, "trained on", _trained_on, {"patients": "num_training"})
        else:
            _print_sets(rows)
    if evaluation.command != "evaluate images":
        return
    shared.console.print(
        "↑ higher is better, ↓ lower is better, = as near to the floor as possible; ? too few patients to rely on: a "
        "Fréchet distance needs 2 D. Floor: real patients against each other, in the numbers of 'matched'.",
    )


def _print_samples(rows: Sequence[Row]) -> None:
    """Print the scores in the brain with a column for each modality, and what a calibrated model would have."""
    brain = [row for row in rows if row["region"] == "brain"]
    modalities = list(dict.fromkeys(row["modality"] for row in brain))
    counted = f"{brain[0]['num_generated']} of {brain[0]['patients_real']} patients"
    table = _table(f"samples in the brain: {counted}", "metric", *modalities, "calibrated")
    for metric in dict.fromkeys(row["metric"] for row in brain):
        own = {row["modality"]: row for row in brain if row["metric"] == metric}
        first = own[modalities[0]]
        unit = f" {first['unit']}" if first["unit"] else ""
        cells = [_with_interval(own[name]) for name in modalities]
        table.add_row(f"{metric}{unit} {ARROWS[first['better']]}", *cells, _number(first["floor"]))
    shared.console.print(table)
    shared.console.print(
        "↑ higher is better, ↓ lower is better, = as near to 'calibrated' as possible: a model whose samples and truth "
        "cannot be told apart. The files hold the tumour and the calibration curve too."
    )


def _kind(row: Row) -> str:
    return _KINDS[row["metric"]]


def _set_of(row: Row) -> str:
    modality = "" if row["modality"] == "all" else f", {row['modality']}"
    return {"rank_correlation_real": "real, held out"}.get(row["metric"], "generated") + modality


def _trained_on(row: Row) -> str:
    return row["trained_on"] if row["metric"] == "dice" else f"{row['trained_on']} / real"


def _print_by_region(
    rows: Sequence[Row],
    title: str,
    first: str,
    label: Callable[[Row], str],
    totals: Mapping[str, str],
    *,
    floor: bool = False,
) -> None:
    """Print a table with one column per region.

    Args:
        rows: scores.
        title: of the table.
        first: title of the first column.
        label: content of the first column; rows of one label share a line.
        totals: title of each further column → key of its number.
        floor: show that of each score in brackets.
    """
    regions = list(dict.fromkeys(row["region"] for row in rows))
    table = _table(title, first, *regions, *totals)
    for name in dict.fromkeys(map(label, rows)):
        own = {row["region"]: row for row in rows if label(row) == name}
        cells = [
            _with_interval(own[region]) + (f" ({_number(own[region]['floor'])})" if floor else "")
            for region in regions
        ]
        table.add_row(name, *cells, *(str(own[regions[0]][key]) for key in totals.values()))
    shared.console.print(table)


def _print_sets(rows: Sequence[Row]) -> None:
    for extractor in dict.fromkeys(row["extractor"] for row in rows):
        own = [row for row in rows if row["extractor"] == extractor]
        counted = [
            f"{own[0][f'num_{side}']} {side} of {own[0][f'patients_{side}']} patients"
            for side in ("generated", "real")
        ]
        title = f"{own[0]['group']}{f', {extractor}' if extractor else ''}: {', '.join(counted)}"
        table = _table(title, "metric", "score", "matched", "floor", "D")
        for row in own:
            table.add_row(
                f"{row['metric']} {ARROWS[row['better']]}{'' if row['reliable'] else ' ?'}",
                _with_interval(row),
                _number(row["matched"]),
                _number(row["floor"]),
                str(row["dimensions"] or ""),
            )
        shared.console.print(table)
    absent = [row for row in rows if row["value"] is None]
    for note in dict.fromkeys(row["note"] for row in absent if row["note"]):
        names = ", ".join(row["metric"] for row in absent if row["note"] == note)
        shared.console.print(f"{names}: {note}")


def _table(title: str, *columns: str) -> Any:
    """Return an empty table; where it is too wide, its first column stays whole and the others break their lines."""
    from rich.table import Column, Table

    cells = (Column(name, no_wrap=k == 0, overflow="fold") for k, name in enumerate(columns))
    return Table(*cells, title=title, title_justify="left", box=None)


def _with_interval(row: Row) -> str:
    if row["low"] is None:
        return _number(row["value"])
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
