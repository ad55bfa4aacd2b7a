"""The report as one HTML file: table, findings, thumbnails and histograms, nothing loaded from anywhere."""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prod9.data.checking.findings import Finding
from prod9.data.checking.voxels import BINS, CaseVoxels
from prod9.files import atomic_write
from prod9.system.wording import plural

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}td.n{text-align:right}
li{margin:.25rem 0}.error{color:#a40e26}.warning{color:#7d4e00}.note{color:#57606a}
.cases{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}figcaption{font-size:.8rem;color:#57606a}
img{display:block;background:#000;image-rendering:pixelated}svg{background:#f6f8fa}
"""
MAX_THUMBNAILS = 60
"""Cases shown; the page stays below a few MB."""


class Reported(Protocol):
    """What a page is made of: the report of a folder, or of a MedMNIST3D file."""

    root: Path
    findings: list[Finding]
    voxels: list[CaseVoxels]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        ...


def write_page(path: Path, report: Reported) -> None:
    """Write the page; pictures and histograms are there after a deep check."""
    facts = report.to_dict()
    rows = "".join(f"<tr><th>{_text(name)}<td>{_text(value)}" for name, value in facts_of(facts))
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{_text(report.root)}</title><style>{_STYLE}</style>",
        f"<h1>{_text(report.root)}</h1><table>{rows}</table>",
        _findings(report),
        _intensities(facts["intensities"], report.voxels),
        _labels(facts["labels"]),
        _pictures(report.voxels),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def facts_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table of a report's facts, as (name, text)."""
    patients = f"{report['cases']} of {plural(report['patients'], 'patient')}"
    if report["time_points"] > 1:
        patients += f", up to {plural(report['time_points'], 'time point')} each"
    modalities = [f"{name} {number}" for name, number in report["modalities"].items()]
    rows = [
        ("layout", _listed(report["names"]) if report["layout"] == "brats" else report["layout"]),
        ("labels", _listed(report["label_schemes"]) or "no segmentations"),
        ("cases", patients),
        ("volumes", ", ".join([*modalities, f"seg {report['segmentations']}"])),
        ("shape", _listed(report["shapes"])),
        ("spacing (mm)", _listed(report["spacings_mm"])),
        ("orientation", _listed(report["orientations"])),
        ("stored as", _listed(report["types"])),
    ]
    rows += [("split", _listed(report["parts"]))] if report["parts"] else []
    return rows + [
        (part, ", ".join(f"{name} {number}" for name, number in classes.items()))
        for part, classes in report.get("classes", {}).items()
    ]


def png(image: np.ndarray) -> bytes:
    """Return the grey picture ``image`` uint8 [h w] as a PNG file (PNG specification, ISO/IEC 15948)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = image.shape
    rows = np.concatenate(
        [np.zeros((height, 1), dtype=np.uint8), image], axis=1
    )  # each row: filter 0, pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _findings(report: Reported) -> str:
    if not report.findings:
        return "<h2>Findings</h2><p>None."
    items = "".join(f"<li class={f.level}><b>{f.level}</b> {_text(f.message)}" for f in report.findings)
    return f"<h2>Findings</h2><ul>{items}</ul>"


def _intensities(table: dict[str, dict[str, float]], voxels: Sequence[CaseVoxels]) -> str:
    if not table:
        return ""
    head = "".join(f"<th>{name}" for name in next(iter(table.values())))
    rows = "".join(
        f"<tr><th>{_text(kind)}" + "".join(f"<td class=n>{value:.4g}" for value in row.values())
        + f"<td>{_histogram([v.images[kind].histogram for v in voxels if kind in v.images])}"
        for kind, row in table.items()
    )  # fmt: skip
    caption = "Medians over the volumes, of voxels that are not background; foreground: their share."
    return (
        f"<h2>Intensities</h2><p>{caption}<table><tr><th>{head}<th>0.5th to 99.5th percentile{rows}</table>"
    )


def _histogram(all_counts: Sequence[Sequence[int]]) -> str:
    """Return the mean of the volumes' histograms as bars."""
    shares = np.mean([np.asarray(counts) / max(1, sum(counts)) for counts in all_counts], axis=0)
    tallest = max(float(shares.max()), 1e-9)
    bars = "".join(
        f'<rect x="{4 * i}" y="{40 - 40 * s / tallest:.1f}" width="3.2" height="{40 * s / tallest:.1f}"/>'
        for i, s in enumerate(shares)
    )
    return f'<svg width="{4 * BINS}" height="40" fill="#2f6feb">{bars}</svg>'


def _labels(table: dict[str, dict[str, float]]) -> str:
    if not table:
        return ""
    rows = "".join(
        f"<tr><th>{k}<td class=n>{v['cases']:g}<td class=n>{v['median_ml']:.1f}" for k, v in table.items()
    )
    return f"<h2>Labels (canonical)</h2><table><tr><th><th>cases<th>median ml{rows}</table>"


def _pictures(voxels: Sequence[CaseVoxels]) -> str:
    shown = [v for v in voxels if v.thumbnail is not None][:MAX_THUMBNAILS]
    figures = "".join(
        f'<figure><img alt="" src="data:image/png;base64,{base64.b64encode(png(v.thumbnail)).decode()}">'
        f"<figcaption>{_text(v.case_id)}</figcaption></figure>"
        for v in shown
        if v.thumbnail is not None
    )
    return (
        f'<h2>Cases</h2><p>First modality, middle slices.<div class="cases">{figures}</div>' if shown else ""
    )


def _listed(table: dict[str, int]) -> str:
    if len(table) == 1:
        return next(iter(table))
    more = f" and {len(table) - 6} more" if len(table) > 6 else ""
    return ", ".join(f"{value} ({number})" for value, number in list(table.items())[:6]) + more


def _text(value: Any) -> str:
    return html.escape(str(value))
