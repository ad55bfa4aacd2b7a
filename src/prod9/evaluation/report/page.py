"""Puts a report together: gathers what is there, names what is not, and writes one HTML file."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import prod9
from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError, Prod9Error
from prod9.evaluation.report.charts import curve_chart, strip_chart
from prod9.evaluation.report.forms import AuditForm, EvaluationForm, mapping, number
from prod9.evaluation.report.gather import Curves, RunRecord, find_results, find_runs, read_json
from prod9.evaluation.report.scans import Shown, draw_montage, load_generated, load_real
from prod9.evaluation.report.tables import demo_tables, demo_tiles, evaluation_tables
from prod9.files import atomic_write, check_writable

NIIVUE_VERSION = "0.69.0"
GENERATED_FOLDERS = ("volumes", "generated", "patients")
"""Folders of a run in which generated volumes are looked for."""
_PICTURES = {
    "generated.png": "Every generated volume, one axial slice each",
    "translation.png": "Translation of held-out patients",
    "control.png": "Generation under the segmentations of held-out patients",
    "montage.png": "Held-out volumes, their reconstructions, and generated ones",
    "maisi.png": "The MAISI family: held-out, reconstructed, generated",
}
_CURVES = (
    ("Loss", ("train/loss", "val/loss", "train/total", "train/loss_epoch")),
    ("Reconstruction error (L1)", ("train/reconstruction", "val/l1")),
    ("PSNR (dB)", ("val/psnr", "val/psnr_brain")),
    ("SSIM", ("val/ssim", "val/ssim_brain")),
    ("Token accuracy", ("train/accuracy", "val/accuracy")),
    ("Codebook use", ("val/codebook_usage",)),
    ("Velocity error by time", ("val/loss_low", "val/loss_mid", "val/loss_high")),
)


@dataclass(frozen=True)
class Sources:
    """Where the parts of a report lie besides its folder.

    generated: folder of generated volumes, None to look in the folder. include: folders with evaluation.json or
    audit.json.
    """

    generated: Path | None = None
    include: Sequence[Path] = ()


@dataclass
class _Parts:
    """What was found, and (what, how to make it) of the rest."""

    real: list[Shown] = field(default_factory=list)
    generated: list[Shown] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def write_report(folder: Path, output: Path, sources: Sources | None = None) -> Path:
    """Write the report of ``folder`` (a run, or a folder of runs such as the demo's) to ``output``.

    Parts that are not there are left out, with a line that names the command that makes them. Raises DataError for a
    folder without runs, a folder of generated volumes without any, and where the file cannot be written.
    """
    sources = sources or Sources()
    runs = find_runs(folder)
    for place in [*sources.include, *([sources.generated] if sources.generated else [])]:
        if not place.is_dir():
            raise DataError(f"{place}: expected a folder, got nothing there; check the path.")
    check_writable(output.parent)
    parts = _gather(folder, runs, sources)
    where = [folder, *sources.include]
    audits, no_audits = find_results(where, "audit.json", AuditForm)
    evaluations, no_evaluations = find_results(where, "evaluation.json", EvaluationForm)
    for problem in no_audits:
        parts.missing.append((problem, "prod9 audit"))
    for problem in no_evaluations:
        parts.missing.append((problem, "prod9 evaluate"))
    context = {
        **_heading(folder, runs),
        **_volumes(parts),
        **_audit(audits),
        **_scores(read_json(folder / "metrics.json"), evaluations),
        "pictures": _pictures(folder, runs),
        "runs": [_run(run) for run in runs],
        "versions": _versions(runs),
        "missing": [*parts.missing, *_not_run(folder, runs, audits, evaluations)],
    }
    context["sections"] = _sections(context)
    with atomic_write(output) as temporary:
        temporary.write_text(_render(context), encoding="utf-8", errors="replace")
    return output


def _render(context: dict[str, Any]) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    fixed = {
        "style": _asset("style.css").decode("utf-8"),
        "script": _asset("page.js").decode("utf-8"),
        "niivue": base64.b64encode(_asset("niivue.umd.js.gz")).decode("ascii"),
        "niivue_version": NIIVUE_VERSION,
        "version": prod9.__version__,
        "date": date.today().isoformat(),
    }
    return environment.from_string(_asset("page.html.jinja").decode("utf-8")).render(**fixed, **context)


def _asset(name: str) -> bytes:
    return (files("prod9.evaluation.report") / "assets" / name).read_bytes()


def _gather(folder: Path, runs: list[RunRecord], sources: Sources) -> _Parts:
    parts = _Parts()
    if sources.generated is not None:
        parts.generated = load_generated(sources.generated)
    else:
        for place in _generated_folders(folder, runs):
            try:
                parts.generated = load_generated(place)
                break
            except DataError:
                continue
    if not parts.generated:
        parts.missing.append(
            ("Generated volumes:", f"prod9 generate label --model RUN -o {folder / 'generated'}")
        )
    try:
        parts.real = load_real(runs[0])
    except Prod9Error as error:
        parts.missing.append((f"Held-out volumes ({error})", "prod9 report from where the data were read"))
    return parts


def _generated_folders(folder: Path, runs: list[RunRecord]) -> list[Path]:
    roots = dict.fromkeys([folder, *(run.folder for run in runs), *(run.folder.parent for run in runs)])
    inside = [root for root in roots if root == folder or folder in root.parents]
    return [root / name for root in inside for name in GENERATED_FOLDERS if (root / name).is_dir()]


def _heading(folder: Path, runs: list[RunRecord]) -> dict[str, Any]:
    stages = ", ".join(dict.fromkeys(run.stage.replace("_", " ") for run in runs))
    data = runs[0].config.get("data", {})
    split = runs[0].split
    seconds = sum(run.seconds for run in runs)
    chips = [f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {stages}"]
    if data.get("grid"):
        chips.append(" × ".join(str(side) for side in data["grid"]) + " voxels")
    if data.get("spacing"):
        chips.append(" × ".join(f"{mm:g}" for mm in data["spacing"]) + " mm")
    if split:
        chips.append(", ".join(f"{count} {part}" for part, count in split.items()) + " patients")
    if seconds:
        chips.append(f"{seconds / 60:.1f} minutes of training")
    sessions = [session for run in runs for session in run.sessions]
    if sessions:
        chips.append(f"device {sessions[-1].get('device', 'unknown')}")
    family = "MAISI" if any(run.stage.startswith("maisi") for run in runs) else "MaskGiT"
    lead = f"{family} models of 3D medical images: what was trained, what it makes, how near that is to real patients."
    return {"title": folder.resolve().name, "lead": lead, "chips": chips}


def _volumes(parts: _Parts) -> dict[str, Any]:
    scans = [*parts.real, *parts.generated]
    places = {"Real, held out": range(len(parts.real)), "Generated": range(len(parts.real), len(scans))}
    panes = [{"name": name, "volumes": list(where)} for name, where in places.items() if len(where)]
    # The panes begin with the same modality: the one in which lesions show best.
    for pane in panes:
        kinds = {k: scans[k].modality for k in pane["volumes"]}
        pane["volumes"] = sorted(kinds, key=lambda k: (kinds[k] != MODALITIES[-1], k))
    note = (
        "In every row one modality: first a patient that no model saw, then generated volumes."
        if parts.real
        else ""
    )
    montage = (
        base64.b64encode(draw_montage(parts.real, parts.generated)).decode("ascii") if parts.generated else ""
    )
    # No "<" at all: "<!--<script" in a file's name would let a browser read the rest of the page as a script.
    packed = json.dumps([scan.to_dict() for scan in scans], separators=(",", ":")).replace("<", "\\u003c")
    return {
        "scans": scans,
        "scans_json": packed,
        "has_seg": any(scan.seg is not None for scan in scans),
        "has_real": bool(parts.real),
        "panes": panes,
        "montage": montage,
        "montage_note": note,
    }


def _audit(audits: list[tuple[Path, AuditForm]]) -> dict[str, Any]:
    if not audits:
        return {"audit": None, "audit_charts": [], "audit_picture": ""}
    path, audit = audits[-1]
    charts = [
        strip_chart(
            {"held out": row.held_out, "generated": row.generated},
            threshold=row.threshold,
            title=f"{row.name}: distance to training over that to held-out (authenticity {row.authenticity:.2f})",
        )
        for row in audit.embeddings
    ]
    picture = path.with_name("nearest.png")
    return {
        "audit": audit,
        "audit_charts": charts,
        "audit_picture": _picture(picture) if picture.is_file() else "",
    }


def _scores(metrics: dict[str, Any], evaluations: list[tuple[Path, EvaluationForm]]) -> dict[str, Any]:
    tables = [
        table for path, content in evaluations for table in evaluation_tables(content, path.parent.name)
    ]
    return {"tiles": demo_tiles(metrics), "tables": [*tables, *demo_tables(metrics)]}


def _pictures(folder: Path, runs: list[RunRecord]) -> list[dict[str, str]]:
    found = [(folder / name, title) for name, title in _PICTURES.items() if (folder / name).is_file()]
    found += [
        (run.sample, f"{run.name}: {run.sample.stem} of training") for run in runs if run.sample is not None
    ]
    return [{"title": title, "data": _picture(path)} for path, title in found]


def _picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _run(run: RunRecord) -> dict[str, Any]:
    outcome = str(run.sessions[-1].get("outcome", "")) if run.sessions else ""
    facts = [
        f"{run.steps:,} steps" if run.steps else "",
        f"{run.seconds:.0f} s" if run.seconds else "",
        outcome,
    ]
    if run.best:
        value = number(run.best[0].get("value"))
        facts.append(f"best checkpoint at step {run.best[0].get('step')} ({value:.4g})")
    return {
        "name": run.name,
        "stage": run.stage,
        "kind": run.kind,
        "facts": " · ".join(fact for fact in facts if fact),
        "charts": _charts(run.curves),
        "metrics": [(name, f"{value:.4g}") for name, value in run.metrics.items()],
        "config": run.config_text,
        "hashes": sorted(run.hashes.items()),
    }


def _charts(curves: Curves) -> list[str]:
    charts = []
    for title, names in _CURVES:
        series = {name: curves[name] for name in names if name in curves}
        if series:
            charts.append(curve_chart(title, series))
    return charts


def _versions(runs: list[RunRecord]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for run in runs:
        for session in run.sessions:
            for name, value in mapping(session.get("versions")).items():
                found.setdefault(name, set()).add(str(value))
    return [(name, ", ".join(sorted(values))) for name, values in found.items()]


def _not_run(
    folder: Path, runs: list[RunRecord], audits: Sequence[Any], evaluations: Sequence[Any]
) -> list[tuple[str, str]]:
    run = runs[-1].folder
    missing = []
    if not audits:
        missing.append(("The copy audit:", f"prod9 audit --run {run} --generated DIR -o {folder / 'audit'}"))
    if not evaluations:
        where = folder / "evaluation"
        missing.append(
            ("Scores with intervals:", f"prod9 evaluate images REAL GENERATED --output-dir {where}")
        )
    if not any(run.curves for run in runs):
        missing.append(("Training curves:", "--set trainer.loggers=[csv] when training"))
    return missing


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "viewer": ("Viewer", "scans"),
        "montage": ("Montage", "montage"),
        "audit": ("Copy audit", "audit"),
        "scores": ("Scores", "tables"),
        "pictures": ("Pictures", "pictures"),
        "training": ("Training", "runs"),
        "versions": ("Versions", "versions"),
        "missing": ("Missing", "missing"),
    }
    return [(id_, name) for id_, (name, key) in names.items() if context[key]]
