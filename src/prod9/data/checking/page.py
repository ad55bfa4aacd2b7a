"""The report of a data check as one HTML file: facts, findings, histograms and thumbnails."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from prod9.data.checking.summary import AbstractReport, facts_of
from prod9.data.checking.voxels import MAX_THUMBNAILS, CaseVoxels
from prod9.files import atomic_write
from prod9.html.charts import histogram
from prod9.html.page import data_uri, encode_png, render


def write_page(path: Path, report: AbstractReport) -> None:
    """Write the page; pictures and histograms are there after a deep check."""
    facts, voxels = report.to_dict(), report.voxels
    intensities = [
        (kind, *(f"{value:.4g}" for value in row.values()), _mean_histogram(voxels, kind))
        for kind, row in facts["intensities"].items()
    ]
    names = next(iter(facts["intensities"].values()), {})
    shown = [(case.case_id, case.thumbnail) for case in voxels if case.thumbnail is not None]
    text = render(
        "prod9.data.checking",
        "page.html.jinja",
        brand="prod9 data check",
        title=str(report.root),
        facts=facts_of(facts),
        findings=report.findings,
        intensities=intensities,
        intensity_names=["", *names, "0.5th to 99.5th percentile"],
        labels=[(k, f"{v['cases']:g}", f"{v['median_ml']:.1f}") for k, v in facts["labels"].items()],
        pictures=[(case, data_uri(encode_png(image))) for case, image in shown[:MAX_THUMBNAILS]],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _mean_histogram(voxels: Sequence[CaseVoxels], kind: str) -> Markup:
    counts = [np.asarray(case.images[kind].histogram) for case in voxels if kind in case.images]
    return histogram(np.mean([own / max(1, own.sum()) for own in counts], axis=0).tolist())
