"""The report of a data check as one HTML file: facts, findings, pictures of all scans, and what to do next."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from prod9.data.checking.findings import Finding
from prod9.data.checking.summary import AbstractReport, facts_of
from prod9.data.checking.voxels import MAX_THUMBNAILS, CaseVoxels
from prod9.data.labels import canonical_names
from prod9.files import atomic_write
from prod9.html.charts import histogram
from prod9.html.labels import LABEL_COLOURS
from prod9.html.page import data_uri, encode_png, render


def write_page(path: Path, report: AbstractReport) -> None:
    """Write the page; pictures and histograms are there after a deep check."""
    facts, voxels = report.to_dict(), report.voxels
    intensities = [
        (kind, *(f"{value:.4g}" for value in row.values()), _mean_histogram(voxels, kind))
        for kind, row in facts["intensities"].items()
    ]
    columns = next(iter(facts["intensities"].values()), {})
    names = canonical_names({case.scheme for case in voxels if case.scheme is not None})
    shown, concerning = _shown(report)
    text = render(
        "prod9.data.checking",
        "page.html.jinja",
        brand="prod9 data check",
        title=str(report.root),
        facts=facts_of(facts),
        ok=report.ok,
        anatomical=facts["layout"] != "medmnist3d",
        findings=report.findings,
        intensities=intensities,
        intensity_names=["", *columns, "0.5th to 99.5th percentile"],
        labels=[
            (k, names.get(int(k), "not named"), f"{v['cases']:g}", f"{v['median_ml']:.1f}")
            for k, v in facts["labels"].items()
        ],
        legend=[
            (names.get(int(k), f"label {k}"), LABEL_COLOURS.get(int(k), LABEL_COLOURS[1]))
            for k in facts["labels"]
        ],
        cases=[_case(case, concerning[case.case_id]) for case in shown],
        left_out=len(voxels) - len(shown),
        next_steps=report.next_steps(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _shown(report: AbstractReport) -> tuple[list[CaseVoxels], dict[str, list[Finding]]]:
    """Return the cases to show, those with errors or warnings first, and what was found of each."""
    concerning: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        if finding.case is not None:
            concerning[finding.case].append(finding)

    def urgency(case: CaseVoxels) -> int:
        levels = {finding.level for finding in concerning[case.case_id]}
        return next((k for k, level in enumerate(("error", "warning")) if level in levels), 2)

    there = [case for case in report.voxels if case.thumbnail is not None or concerning[case.case_id]]
    return sorted(there, key=urgency)[:MAX_THUMBNAILS], concerning


def _case(case: CaseVoxels, findings: Sequence[Finding]) -> dict[str, object]:
    thumbnail = case.thumbnail
    return {
        "name": case.case_id,
        "titles": () if thumbnail is None else thumbnail.titles,
        "picture": None if thumbnail is None else data_uri(encode_png(thumbnail.picture)),
        "findings": findings,
    }


def _mean_histogram(voxels: Sequence[CaseVoxels], kind: str) -> Markup:
    counts = [np.asarray(case.images[kind].histogram) for case in voxels if kind in case.images]
    return histogram(np.mean([own / max(1, own.sum()) for own in counts], axis=0).tolist())
