"""Detail flows small enough to train in a test, and untrained ones that are written at once."""

from pathlib import Path
from typing import Any

import torch

from prod9.config.load import config_from_dict
from prod9.models.checkpoint_file import write_checkpoint
from prod9.models.checkpoint_manager import make_header
from prod9.models.factory import ModelFactory
from tests.training.tiny import QUIET

LABELS = {"T1": 0, "T1ce": 1, "T2": 2, "FLAIR": 3}
LEVELS = {name: [0.02, 0.03, 0.04] for name in LABELS}


def detail_config(root: Path, output_dir: Path, stage: str = "detail", **sections: Any) -> Any:
    """Return a configuration; ``sections`` are merged one level deep."""
    kind = "translation_detail" if stage == "translation_detail" else "detail"
    base = {"detail": "stage1.ckpt", "translation_detail": "stage2", "maisi_detail": "vae"}[stage]
    values: dict[str, Any] = {
        "stage": stage,
        "output_dir": str(output_dir),
        "inputs": {
            "transformer" if kind == "translation_detail" else "autoencoder": str(output_dir.parent / base)
        },
        "model": {"kind": kind, "num_channels": [8, 8], "detail_channels": 4},
        "sampler": {"steps": 2, "max_steps": 4},
        "data": {
            "root": str(root),
            "split": {"train": 0.6, "val": 0.2, "test": 0.2},
            "spacing": [4.0, 4.0, 4.0],
            "grid": [16, 16, 16],
            "batch_size": 2,
        },
        "training": {"max_steps": 3, "validate_every_steps": 3, "lr_schedule": {"warmup_steps": 0}},
        "trainer": QUIET,
        "callbacks": {"num_samples": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return config_from_dict(values, source="test")


def write_detail(
    path: Path,
    base: str,
    *,
    stage: str = "detail",
    key: str = "autoencoder",
    seed: int = 1,
    labels: dict[str, int] = LABELS,
    **data: Any,
) -> Path:
    """Write a detail flow with random weights on the model with the hash ``base``; ``data``: of its header."""
    classes = max(labels.values()) + 1
    sections = {"model": {"num_classes": classes}, "data": {"label_map": labels, "modalities": list(labels)}}
    config = detail_config(path.parent, path.parent, stage, **sections)
    torch.manual_seed(seed)
    network = ModelFactory.create_detail(config.model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    header = make_header(
        config,
        architecture={"detail": config.model.model_dump(mode="json")},
        step=1,
        split={"train": ["a"], "val": ["b"], "test": []},
        inputs={key: {"path": "x", "relative": "x", "sha256": base}},
        data={
            "grid": [16, 16, 16],
            "label_map": labels,
            "spacing": None,
            "intensity": {},
            "reference_affine": [],
            "noise": {name: [0.02, 0.03, 0.04] for name in labels},
            **data,
        },
    )
    state = {f"detail.{name}": tensor for name, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"prod9": header, "state_dict": state}, path)
    return path
