"""The tables and tiles of a report, from evaluation.json and the demo's metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prod9.evaluation.report.forms import EvaluationForm, ScoreForm, mapping, number
from prod9.html.charts import curve_chart, interval_bar

_TILES = (
    ("psnr_brain", "{:.1f} dB", "PSNR of held-out brains after the autoencoder"),
    ("ssim_brain", "{:.2f}", "SSIM of held-out brains after the autoencoder"),
    ("modality_accuracy", "{:.0%}", "of generated volumes show the modality asked for"),
    ("diversity_ratio", "{:.2f}", "diversity of generated volumes, held-out patients being 1"),
    (
        "frechet_ratio",
        "{:.2f}",
        "Fréchet distance to held-out reconstructions, that of training patients being 1",
    ),
    ("dice_whole_tumour", "{:.2f}", "Dice of generated tumours with those asked for"),
)
"""Figure, its format and its description."""
_BESIDE = {
    "psnr_brain": ("psnr_brain_pca", "PCA codec of equal rate {:.1f} dB"),
    "dice_whole_tumour": ("dice_whole_tumour_base", "without control {:.2f}"),
}
_CALIBRATION = {
    "calibration": "Coverage of Student's intervals by their nominal level",
    "calibration_ranks": "Coverage of the intervals between ordered samples",
}
_AGAINST_REAL = (
    "The orange tick and the column real against real show the score of two sets of "
    "real patients; compare it only with the column matched, which has the same number of patients. N: patients of "
    "the smaller set; D: dimensions; ?: too few patients to rely on, for a Fréchet distance fewer than 2 D."
)
_FLOORS = {
    "samples": (
        "calibrated",
        "The orange tick and the column calibrated show the score of a model whose samples "
        "cannot be told from the truth. N: patients.",
    ),
    "control": (
        "highest",
        "The orange tick and the column highest show the Dice in reconstructions of real scans, or else in scans: no "
        "steered volume can be expected to reach more.",
    ),
    "utility": (
        "floor",
        "Dice of one small segmenter on real test patients, by what it was trained on; share: over that of training on "
        "real patients. Where both is not above real by more than the intervals, synthetic patients bought nothing. "
        "N: test patients with the region.",
    ),
    "covariates": (
        "scans",
        "The orange tick and the column scans show the rank correlation in held-out scans; no generated volumes can be "
        "expected to reach more.",
    ),
    "agreement": (
        "real patients",
        "The orange tick and the column real patients show the same score of held-out real patients; as near to it as "
        "possible is best.",
    ),
}
"""Groups whose floor is no comparison of real with real volumes: the title of its column, and what it means."""


@dataclass(frozen=True)
class Tile:
    """A key figure: its value as text, its description, and what to compare it with."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text or charts; the columns of ``numeric`` are aligned to the right, ``charts`` stand below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: frozenset[int] = field(default_factory=frozenset)
    note: str = ""
    charts: Sequence[Any] = ()


def demo_tiles(metrics: dict[str, Any]) -> list[Tile]:
    """Return the key figures of a demo."""
    stages, tiles = [mapping(stage) for stage in mapping(metrics.get("stages")).values()], []
    for key, form, words in _TILES:
        # The two families name their stages differently: take the first one that has the figure.
        values = next((stage for stage in stages if key in stage), {})
        if isinstance(values.get(key), float):
            other, note = _BESIDE.get(key, ("", ""))
            beside = note.format(values[other]) if isinstance(values.get(other), float) else ""
            mark = ""
            if key == "frechet_ratio":
                mark, beside = _about_frechet(values)
            ends = mapping(values.get("intervals")).get(key)
            if isinstance(ends, list) and len(ends) == 2:
                interval = " to ".join(form.format(number(end)).removesuffix(" dB") for end in ends)
                beside = "; ".join(part for part in (f"95% interval {interval}", beside) if part)
            tiles.append(Tile(form.format(values[key]) + mark, words, beside))
    return tiles


def _about_frechet(values: dict[str, Any]) -> tuple[str, str]:
    """Return the mark of a Fréchet ratio with too few patients, and a note with N, D and the ratio to scans."""
    about = mapping(values.get("frechet"))
    patients, dimensions = int(number(about.get("patients"))), int(number(about.get("dimensions")))
    if not patients or not dimensions:
        return " ?", "N and D are not recorded"
    scans = mapping(mapping(values.get("against_scans")).get("frechet")).get("value")
    beside = f"; to held-out scans {number(scans):.2f}" if isinstance(scans, float) else ""
    return "" if patients >= 2 * dimensions else " ?", f"N {patients} patients, D {dimensions}{beside}"


def evaluation_tables(evaluation: EvaluationForm, source: str) -> list[Table]:
    """Return one table per group of the scores in ``evaluation``, which `prod9 evaluate` wrote."""
    scores = [row for row in evaluation.scores if row.value is not None]
    groups = list(dict.fromkeys(row.group for row in scores))
    tables = [_scores(group, [row for row in scores if row.group == group], source) for group in groups]
    if tables and evaluation.warnings:
        tables[0] = replace(tables[0], note=" ".join([tables[0].note, *evaluation.warnings]))
    if tables:
        tables[-1] = replace(tables[-1], charts=_calibration_charts(evaluation))
    return tables


def _calibration_charts(evaluation: EvaluationForm) -> list[Any]:
    """Return a chart for each kind of intervals, with the curve of each modality and the diagonal."""
    charts = []
    for name, title in _CALIBRATION.items():
        curves = [curve for curve in evaluation.curves if curve.name == name and curve.points]
        if not curves:
            continue
        diagonal = [(point.nominal, point.nominal) for point in curves[0].points]
        found = {c.modality: [(point.nominal, point.coverage) for point in c.points] for c in curves}
        charts.append(curve_chart(title, {"nominal": diagonal, **found}))
    return charts


def _scores(group: str, rows: list[ScoreForm], source: str) -> Table:
    ranges = _ranges(rows)
    body = [
        [
            row.words,
            _short(row.value) + (f" {row.unit}" if row.unit else "") + row.mark,
            _interval(row),
            _short(row.matched),
            _short(row.floor),
            row.numbers,
            interval_bar(row.value or 0.0, row.low, row.high, *ranges[row.metric, row.extractor], row.floor),
            row.note or ("" if row.reliable else "unreliable"),
        ]
        for row in rows
    ]
    floor, about = _FLOORS.get(group, ("real against real", _AGAINST_REAL))
    note = f"{source}. Intervals hold 95%. {about}"
    head = ["score", "value", "interval", "matched", floor, "N, D", "", "note"]
    return Table(group.capitalize(), head, body, frozenset({1, 2, 3, 4}), note)


def _ranges(rows: list[ScoreForm]) -> dict[tuple[str, str | None], tuple[float, float]]:
    """Return the range that the bars of one score share."""
    values: dict[tuple[str, str | None], list[float]] = {}
    for row in rows:
        found = (row.value, row.low, row.high, row.floor)
        values.setdefault((row.metric, row.extractor), []).extend(v for v in found if v is not None)
    return {key: (min(found), max(found)) for key, found in values.items()}


def _interval(row: ScoreForm) -> str:
    return "" if row.low is None or row.high is None else f"{_short(row.low)} to {_short(row.high)}"


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
