"""Model card and data card of a run, as Markdown with the metadata block of Hugging Face."""

from pathlib import Path

import prod9
from prod9.errors import DataError
from prod9.evaluation.report.forms import AuditForm, EvaluationForm, ScoreForm, mapping
from prod9.evaluation.report.gather import RunRecord, find_results, read_run
from prod9.files import atomic_write
from prod9.models.cards import DISCLAIMER, front_matter, model_front_matter, model_title
from prod9.system.wording import plural

MODEL_CARD, DATA_CARD = "MODEL_CARD.md", "DATA_CARD.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
_MAX_SCORES = 40
_SCORE_HEAD = ["score (?: too few patients)", "value", "95% interval", "real against real", "matched", "N, D"]
_NOTHING = "Nothing recorded yet."
_ANY_GRID = "any number of"


def write_cards(folder: Path, output: Path) -> list[Path]:
    """Write both cards of the run ``folder`` to ``output`` and return their paths.

    Raises DataError for a folder that is no run.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(
            f"{folder}: expected a run folder with config.yaml, got none; name one run, not several."
        )
    run = read_run(folder, folder)
    audits = [audit for _, audit in find_results([folder], "audit.json", AuditForm)[0]]
    evaluations = [found for _, found in find_results([folder], "evaluation.json", EvaluationForm)[0]]
    output.mkdir(parents=True, exist_ok=True)
    texts = {MODEL_CARD: model_card(run, audits, evaluations), DATA_CARD: data_card(run)}
    for name, text in texts.items():
        with atomic_write(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")
    return [output / name for name in texts]


def model_card(run: RunRecord, audits: list[AuditForm], evaluations: list[EvaluationForm]) -> str:
    """Return the model card: the model, its training data, its scores, and the copy audit."""
    data = run.data
    spacing = f" of {run.spacing} mm" if run.spacing else ""
    dataset = Path(str(data.get("root", "data"))).name
    scores = [row for found in evaluations for row in found.scores if row.value is not None]
    sessions = run.sessions[-1] if run.sessions else {}
    versions = ", ".join(f"{name} {value}" for name, value in mapping(sessions.get("versions")).items())
    lines = [
        model_front_matter(run.stage, dataset=dataset, metrics=list(run.metrics.items())),
        f"# {model_title(run.stage)}: {run.name}",
        "",
        f"- Stage `{run.stage}`{f', kind `{run.kind}`' if run.kind else ''}, trained for {run.steps:,} steps "
        f"({run.seconds / 60:.1f} minutes on {sessions.get('device', 'an unknown device')})",
        f"- Trained on {plural(run.split.get('train', 0), 'patient')} of `{dataset}`; see {DATA_CARD}",
        f"- Volumes of {run.grid or _ANY_GRID} voxels{spacing}, intensities in [0, 1], RAS",
        f"- Software: {versions or f'prod9 {prod9.__version__}'}",
        "",
        "## Use",
        "",
        DISCLAIMER,
        "",
        "## Validation during training",
        "",
        *(_table(["figure", "value"], [[k, f"{v:.4g}"] for k, v in run.metrics.items()]) or [_NOTHING]),
        "",
        "## Evaluation",
        "",
        *(_table(_SCORE_HEAD, [_score(row) for row in scores[:_MAX_SCORES]])
          or ["Not evaluated: `prod9 evaluate images REAL GENERATED`."]),
        "",
        "## Copies of patients",
        "",
        *([_verdict(audit) for audit in audits] or [f"Not audited: `prod9 audit --run {run.name} --generated DIR`."]),
        "",
        "## Weights",
        "",
        *(_table(["file", "SHA-256"], [[k, f"`{v}`"] for k, v in sorted(run.hashes.items())]) or [_NOTHING]),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def data_card(run: RunRecord) -> str:
    """Return the data card: the volumes that the run read, and how they were prepared and divided."""
    data = run.data
    total = sum(run.split.values())
    size = next((name for limit, name in _SIZES if total < limit), "n>100K")
    name = Path(str(data.get("root", "data"))).name
    intensity = data.get("intensity") or {}
    rows = [
        ["layout", str(data.get("layout") or data.get("kind"))],
        ["modalities", ", ".join(data.get("modalities") or []) or str(data.get("name", ""))],
        ["grid", f"{run.grid or _ANY_GRID} voxels"],
        ["voxel size", f"{run.spacing} mm" if run.spacing else "as in the files"],
        ["intensities", " ".join(str(value) for value in intensity.values()) or "scaled to [0, 1]"],
        ["segmentations", f"label scheme {data.get('label_scheme', 'none')}"],
    ]
    parts = [[part, str(count)] for part, count in run.split.items()]
    lines = [
        front_matter(
            pretty_name=name,
            license="other",
            license_name="as-its-owner-says",
            task_categories=["unconditional-image-generation", "image-to-image"],
            tags=["medical-imaging", "mri", "3d"],
            size_categories=[size],
        ),
        f"# Data of {run.name}: {name}",
        "",
        "Licence and consent are those of the dataset's owner: name them here before the card is shared.",
        "",
        "## Preparation",
        "",
        *_table(["what", "how"], rows),
        "",
        "## Division",
        "",
        "By patient: all scans of a patient are in one part. The model was trained on `train`, chosen by `val`, and is "
        "scored on `test` only.",
        "",
        *(_table(["part", "patients"], parts) or ["No split is recorded."]),
        "",
    ]
    return "\n".join(lines)


def _verdict(audit: AuditForm) -> str:
    sets, count = audit.sets, len(audit.suspects)
    share, limit = f"{audit.share_suspect:.1%}", f"{audit.max_share:.0%}"
    patients = f"{sets.train.patients} training and {sets.held_out.patients} held-out patients"
    gaps = f"; {len(audit.gaps)} not looked at" if audit.gaps else ""
    return (
        f"- `prod9 audit`: {count} of {sets.generated.volumes} generated volumes suspect ({share}, limit {limit}), "
        f"compared with {patients}{gaps}: {'passed' if audit.passed else '**failed**'}"
    )


def _score(row: ScoreForm) -> list[str]:
    interval = "" if row.low is None or row.high is None else f"{row.low:.4g} to {row.high:.4g}"
    return [
        row.words if row.reliable else f"? {row.words}",
        f"{row.value:.4g}",
        interval,
        "" if row.floor is None else f"{row.floor:.4g}",
        "" if row.matched is None else f"{row.matched:.4g}",
        row.numbers,
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
