"""A refiner small enough to train in a test, and a translator that needs no training."""

from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.splits import Split
from prod9.training.config import config_from_dict
from prod9.training.config_schema import RefinerConfig
from tests.training.tiny import QUIET


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
