"""A refiner small enough to train in a test, and a translator that needs no training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prod9.config.load import config_from_dict
from prod9.config.schema import RefinerConfig
from prod9.data.splits import Split
from prod9.models.checkpoint_file import write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager, make_header
from prod9.models.factory import ModelFactory
from tests.training.tiny import QUIET, transformer_config, write_autoencoder

DECODER = {"kind": "decoder", "embed_dim": 24, "num_blocks": 1, "num_heads": 2}


class Average:
    """Translates by averaging the sources; counts its calls."""

    def __init__(self, num_sources: range = range(1, 4), **trained: tuple[str, ...]) -> None:
        self.num_sources = num_sources
        self.split = Split(**{"train": (), "val": (), "test": (), **trained})
        self.settings = ["weights"]
        self.calls: list[tuple[list[str], str, int]] = []

    def __call__(self, sources: dict[str, np.ndarray], target: str, *, seed: int) -> np.ndarray:
        """Return the mean of ``sources``."""
        self.calls.append((list(sources), target, seed))
        return np.mean(list(sources.values()), axis=0)


def refiner_config(root: Path, output_dir: Path, **sections: Any) -> RefinerConfig:
    """Return a configuration; ``sections`` are merged one level deep."""
    values: dict[str, Any] = {
        "stage": "refiner",
        "output_dir": str(output_dir),
        "inputs": {"transformer": str(output_dir.parent / "stage2")},
        "model": {"num_channels": [8, 8], "space_to_depth": 2, "detail_channels": 4},
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
    config = config_from_dict(values, source="test")
    assert isinstance(config, RefinerConfig)
    return config


def write_translator(folder: Path, *, seed: int = 0, **model: Any) -> None:
    """Write an untrained stage-2 run on the grid of the refiner's configuration."""
    write_autoencoder(folder / "stage1.ckpt")
    upstream = CheckpointManager.load_autoencoder(folder / "stage1.ckpt")
    config = transformer_config(folder, folder / "stage2", folder / "stage1.ckpt", model=DECODER | model)
    section = upstream.header["architecture"]["autoencoder"]
    torch.manual_seed(seed)
    network = ModelFactory.create_transformer(config.model, levels=section["levels"])
    data = refiner_config(folder, folder / "refiner").data.model_dump(mode="json")
    header = make_header(
        config,
        architecture={"transformer": config.model.model_dump(mode="json"), "autoencoder": section},
        step=1,
        split={"train": [], "val": [], "test": []},
        inputs={
            "autoencoder": {
                "path": str(upstream.path),
                "relative": "../stage1.ckpt",
                "sha256": upstream.sha256,
            }
        },
        data={
            **{key: data[key] for key in ("grid", "label_map", "spacing", "intensity")},
            "reference_affine": torch.eye(4).tolist(),
        },
    )
    state = {f"decoder.{name}": tensor for name, tensor in network.state_dict().items()}
    path = folder / "stage2" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"prod9": header, "state_dict": state}, path)
