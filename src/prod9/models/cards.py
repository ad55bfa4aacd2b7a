"""Model cards: Markdown about an exported or trained network, with the metadata block of Hugging Face."""

from collections.abc import Sequence
from typing import Any

import yaml

from prod9.stages import STAGES

DISCLAIMER = (
    "Research use only: no medical device, not for diagnosis. A generative model can reproduce its training data; "
    "audit samples (`prod9 audit`) before sharing them."
)


def front_matter(**fields: Any) -> str:
    """Return a metadata block: YAML between two lines of three dashes."""
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def model_title(stage: str) -> str:
    """Return what a model of ``stage`` is called; an unknown stage is called by its name."""
    return STAGES[stage].title if stage in STAGES else stage


def model_front_matter(stage: str, *, dataset: str = "", metrics: Sequence[tuple[str, float]] = ()) -> str:
    """Return the metadata block of a model card, with ``metrics`` (name, value) on ``dataset`` as its model index."""
    family = STAGES[stage].family if stage in STAGES else "maskgit"
    tags = ["prod9", family, "medical-imaging", "mri", "3d", "image-generation"]
    fields: dict[str, Any] = {
        "library_name": "prod9",
        "license": "other",
        "license_name": "as-the-training-data-permit",
        "pipeline_tag": "unconditional-image-generation",
        "tags": tags,
    }
    if metrics:
        result = {
            "task": {"type": "unconditional-image-generation"},
            "dataset": {"name": dataset, "type": dataset.lower().replace(" ", "-")},
            "metrics": [{"type": name, "name": name, "value": round(value, 6)} for name, value in metrics],
        }
        fields["model-index"] = [{"name": f"prod9-{stage}", "results": [result]}]
    return front_matter(**fields)


def export_card(header: dict[str, Any], parameters: int, dtype: str) -> str:
    """Return the card of an export folder, from the header of its checkpoint."""
    data, stage = header["data"], header["stage"]
    labels = ", ".join(f"{key} = {value}" for key, value in data.get("label_map", {}).items())
    patients = ", ".join(
        f"{len(ids)} {part}" for part, ids in header["split"].items() if isinstance(ids, list)
    )
    lines = [
        model_front_matter(stage),
        f"# {model_title(stage)} (prod9)",
        "",
        f"- Stage: `{stage}`, {parameters:,} values, {dtype}",
        f"- Trained for {header['step']:,} {'step' if header['step'] == 1 else 'steps'} with prod9 {header['version']}",
        f"- Volumes: {data.get('grid')} voxels, intensities in [0, 1], RAS",
        f"- Labels: {labels}",
        f"- Patients: {patients}",
    ]
    lines += [
        f"- Needs the {name} at `{base['relative']}` (SHA-256 `{base['sha256']}`)"
        for name, base in header["inputs"].items()
    ]
    lines += [
        "",
        DISCLAIMER,
        "",
        "Files are checked against `manifest.json` when loaded with",
        "`prod9.models.checkpoint_manager.CheckpointManager.from_pretrained(folder)`.",
        "",
    ]
    return "\n".join(lines)
