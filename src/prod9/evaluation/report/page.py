"""Write a report as one HTML file: gather what is there, and name what is missing."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError, Prod9Error
from prod9.evaluation.report import words
from prod9.evaluation.report.demo_scores import demo_tables
from prod9.evaluation.report.forms import AuditForm, EvaluationForm, mapping, number
from prod9.evaluation.report.gather import Curves, RunRecord, find_results, find_runs, read_json
from prod9.evaluation.report.pictures import MONTAGE, PICTURES
from prod9.evaluation.report.scans import Shown, draw_montage, in_one_frame, load_generated, load_real
from prod9.evaluation.report.tables import demo_tiles, evaluation_tables
from prod9.files import atomic_write, check_writable
from prod9.html.charts import curve_chart, strip_chart
from prod9.html.page import data_uri, render
from prod9.stages import STAGES
from prod9.system.wording import plural

NIIVUE_VERSION = "0.69.0"
GENERATED_FOLDERS = ("volumes", "generated", "patients")
"""Subfolders of a run in which generated volumes are looked for."""
_CURVES = (
    ("Loss", ("train/loss", "val/loss", "train/total", "train/loss_epoch")),
    ("Reconstruction error (L1)", ("train/reconstruction", "val/l1")),
    ("PSNR (dB)", ("val/psnr", "val/psnr_brain")),
    ("SSIM", ("val/ssim", "val/ssim_brain")),
    ("Token accuracy", ("train/accuracy", "val/accuracy")),
    ("Codebook use", ("val/codebook_usage",)),
    ("Velocity error by time", ("val/loss_low", "val/loss_mid", "val/loss_high")),
)
_SECTIONS = {
    "first": ("What it makes", "leads"),
    "viewer": ("Viewer", "scans"),
    "montage": ("Montage", "montage"),
    "audit": ("Copy audit", "audit"),
    "scores": ("Scores", "tables"),
    "pictures": ("Pictures", "pictures"),
    "training": ("Training", "runs"),
    "versions": ("Versions", "versions"),
    "missing": ("Missing", "missing"),
}
"""Sections by anchor: the title, and what must be there for the section to be."""
_MAX_SUSPECTS = 40
_PACKAGE = "prod9.evaluation.report"


@dataclass(frozen=True)
class Sources:
    """Where further parts of a report lie.

    Attributes:
        generated: folder of generated volumes; None to look in the report's own folder.
        include: folders with evaluation.json or audit.json.
        radiological: show the patient's right on the left.
    """

    generated: Path | None = None
    include: Sequence[Path] = ()
    radiological: bool = False


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
    missing: list[tuple[str, str]] = []
    generated, real = _find_generated(folder, runs, sources, missing), _find_real(runs[0], missing)
    where = [folder, *sources.include]
    audits, no_audits = find_results(where, "audit.json", AuditForm)
    evaluations, no_evaluations = find_results(where, "evaluation.json", EvaluationForm)
    missing += [(problem, "prod9 audit") for problem in no_audits]
    missing += [(problem, "prod9 evaluate") for problem in no_evaluations]
    metrics = read_json(folder / "metrics.json")
    tables = [
        table for path, content in evaluations for table in evaluation_tables(content, path.parent.name)
    ]
    context = {
        **_heading(folder, runs),
        **_volumes(real, generated, folder, radiological=sources.radiological),
        **_audit(audits),
        "tiles": demo_tiles(metrics),
        "tables": [*tables, *demo_tables(metrics)],
        "leads": _pictures(folder, leads=True),
        "pictures": _pictures(folder, leads=False),
        "runs": [_run(run) for run in runs],
        "versions": _versions(runs),
        "missing": [*missing, *_not_run(folder, runs, audits, evaluations)],
    }
    context["sections"] = [(id_, name) for id_, (name, key) in _SECTIONS.items() if context[key]]
    viewer = (files(_PACKAGE) / "assets" / "niivue.umd.js.gz").read_bytes()
    text = render(
        _PACKAGE,
        "page.html.jinja",
        brand="prod9 report",
        niivue=base64.b64encode(viewer).decode("ascii"),
        niivue_version=NIIVUE_VERSION,
        date=date.today().isoformat(),
        **context,
    )
    with atomic_write(output) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return output


def _find_generated(
    folder: Path, runs: list[RunRecord], sources: Sources, missing: list[tuple[str, str]]
) -> list[Shown]:
    """Return volumes of the folder that was named, or else of the first one near the runs that holds any."""
    if sources.generated is not None:
        return load_generated(sources.generated)
    roots = dict.fromkeys([folder, *(run.folder for run in runs), *(run.folder.parent for run in runs)])
    inside = [root for root in roots if root == folder or folder in root.parents]
    for place in [root / name for root in inside for name in GENERATED_FOLDERS if (root / name).is_dir()]:
        try:
            return load_generated(place)
        except DataError:
            continue
    missing.append(("Generated volumes:", f"prod9 generate label --model RUN -o {folder / 'generated'}"))
    return []


def _find_real(run: RunRecord, missing: list[tuple[str, str]]) -> list[Shown]:
    try:
        return load_real(run)
    except Prod9Error as error:
        missing.append((f"Held-out volumes ({error})", "prod9 report from where the data were read"))
        return []


def _heading(folder: Path, runs: list[RunRecord]) -> dict[str, Any]:
    stages = ", ".join(dict.fromkeys(run.stage.replace("_", " ") for run in runs))
    first = runs[0]
    seconds = sum(run.seconds for run in runs)
    chips = [f"{plural(runs, 'run')}: {stages}"]
    chips += [f"{text} {unit}" for text, unit in ((first.grid, "voxels"), (first.spacing, "mm")) if text]
    if first.split:
        chips.append(", ".join(f"{count} {part}" for part, count in first.split.items()) + " patients")
    if seconds:
        chips.append(f"{seconds / 60:.1f} minutes of training")
    sessions = [session for run in runs for session in run.sessions]
    if sessions:
        chips.append(f"device {sessions[-1].get('device', 'unknown')}")
    maisi = any(run.stage in STAGES and STAGES[run.stage].family == "maisi" for run in runs)
    family = "MAISI" if maisi else "MaskGiT"
    lead = f"{family} models of 3D medical images: what was trained, what it makes, how near that is to real patients."
    return {"title": folder.resolve().name, "lead": lead, "chips": chips}


def _volumes(
    real: list[Shown], generated: list[Shown], folder: Path, *, radiological: bool
) -> dict[str, Any]:
    scans = in_one_frame([*real, *generated])
    real, generated = scans[: len(real)], scans[len(real) :]
    places = {"Real, held out": range(len(real)), "Generated": range(len(real), len(scans))}
    panes = [{"name": name, "volumes": list(where)} for name, where in places.items() if len(where)]
    # The panes begin with the same modality: the one in which lesions show best.
    for pane in panes:
        kinds = {k: scans[k].modality for k in pane["volumes"]}
        pane["volumes"] = sorted(kinds, key=lambda k: (kinds[k] != MODALITIES[-1], k))
    # No "<" at all: "<!--<script" in a file's name would let a browser read the rest of the page as a script.
    packed = json.dumps([scan.to_dict() for scan in scans], separators=(",", ":")).replace("<", "\\u003c")
    return {
        "scans": scans,
        "scans_json": Markup(packed),
        "has_seg": any(scan.seg is not None for scan in scans),
        "has_real": bool(real),
        "panes": panes,
        "radiological": radiological,
        # A demo has a montage of its own, with the reconstructions too.
        "montage": ""
        if not generated or (folder / MONTAGE.file).is_file()
        else data_uri(draw_montage(real, generated, radiological=radiological)),
    }


def _audit(audits: list[tuple[Path, AuditForm]]) -> dict[str, Any]:
    if not audits:
        return {"audit": None, "audit_charts": [], "audit_picture": "", "suspects": []}
    path, audit = audits[-1]
    charts = [
        strip_chart(
            {"held out": row.held_out, "generated": row.generated},
            threshold=row.threshold,
            title=f"{words.embedding(row.name).capitalize()}: distance to training over that to held-out "
            f"(authenticity {row.authenticity:.2f})",
        )
        for row in audit.embeddings
    ]
    suspects = [
        (
            pair.generated.split("/")[-1],
            f"{pair.train.case} {pair.train.modality}{', mirrored' if pair.mirrored_axes else ''}",
            f"{min(pair.relative_distance.values()):.3f}",
            f"{pair.p_value:.3f}",
        )
        for pair in audit.suspects[:_MAX_SUSPECTS]
    ]
    picture = path.with_name("nearest.png")
    return {
        "audit": audit,
        "audit_charts": charts,
        "audit_picture": data_uri(picture.read_bytes()) if picture.is_file() else "",
        "suspects": suspects,
    }


def _pictures(folder: Path, *, leads: bool) -> list[tuple[str, str]]:
    """Return title and content of the demo's pictures that are there: those that lead, or the others."""
    found = [(one.title, folder / one.file) for one in PICTURES if one.leads == leads]
    return [(title, data_uri(path.read_bytes())) for title, path in found if path.is_file()]


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
        "metrics": [(name, f"{value:.3g}") for name, value in run.metrics.items()],
        "config": run.config_text,
        "sample": (run.sample.stem, data_uri(run.sample.read_bytes())) if run.sample else None,
        "hashes": [
            (name, Markup("<code>{}</code>").format(value)) for name, value in sorted(run.hashes.items())
        ],
    }


def _charts(curves: Curves) -> list[str]:
    charts: list[str] = []
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
