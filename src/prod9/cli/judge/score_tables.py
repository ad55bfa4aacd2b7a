"""Tables of an evaluation's scores on the screen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prod9.cli import shared

if TYPE_CHECKING:
    from prod9.evaluation.score_table import Evaluation

ARROWS = {"higher": "↑", "lower": "↓", "floor": "="}
Row = Mapping[str, Any]


def print_scores(evaluation: "Evaluation") -> None:
    """Print one table for each group of scores: over all modalities; the files hold the rest."""
    rows = [row for row in evaluation.scores if row.get("modality", "all") == "all"]
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        _TABLES.get(group, _print_sets)(own)
    if evaluation.command == "evaluate utility":
        return
    shared.console.print(
        "↑ higher is better, ↓ lower, = as near to the floor as can be; ? too few patients to rely on: a Fréchet "
        "distance takes 2 D. Floor: real patients against each other, at the numbers of 'matched'.",
    )


def _print_paired(rows: Sequence[Row]) -> None:
    regions = list(dict.fromkeys(row["region"] for row in rows))
    table = _table("paired", "metric", *regions, "volumes", "patients", wrap=True)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = {row["region"]: row for row in rows if row["metric"] == metric}
        first = own[regions[0]]
        cells = [_with_interval(own[region]) for region in regions]
        table.add_row(
            f"{metric} {ARROWS[first['better']]}",
            *cells,
            str(first["num_generated"]),
            str(first["patients_generated"]),
        )
    shared.console.print(table)


def _print_sets(rows: Sequence[Row]) -> None:
    for extractor in dict.fromkeys(row["extractor"] for row in rows):
        own = [row for row in rows if row["extractor"] == extractor]
        first = own[0]
        title = (
            f"{first['group']}{f', {extractor}' if extractor else ''}: "
            f"{_counted(first, 'generated')}, {_counted(first, 'real')}"
        )
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


def _counted(row: Row, side: str) -> str:
    return f"{row[f'num_{side}']} {side} of {row[f'patients_{side}']} patients"


def _print_utility(rows: Sequence[Row]) -> None:
    regions = list(dict.fromkeys(row["region"] for row in rows))
    table = _table("utility: Dice, and Dice over that of real", "trained on", *regions, "patients", wrap=True)
    for kind in dict.fromkeys((row["metric"], row["trained_on"]) for row in rows):
        own = {row["region"]: row for row in rows if (row["metric"], row["trained_on"]) == kind}
        name = kind[1] if kind[0] == "dice" else f"{kind[1]} / real"
        cells = [_with_interval(own[region]) for region in regions]
        table.add_row(name, *cells, str(own[regions[0]]["num_training"]))
    shared.console.print(table)


_TABLES = {"paired": _print_paired, "utility": _print_utility}


def _table(title: str, *columns: str, wrap: bool = False) -> Any:
    """Return an empty table; the first column is never cut, the others only where they must not ``wrap``."""
    from rich.table import Column, Table

    cells = (Column(name, no_wrap=not (wrap and k)) for k, name in enumerate(columns))
    return Table(*cells, title=title, title_justify="left", box=None)


def _with_interval(row: Row) -> str:
    if row["low"] is None:
        return _number(row["value"])
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
