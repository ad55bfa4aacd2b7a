"""Every layout is trained on from the command line."""

from pathlib import Path

import pytest

from tests.data.trees import WRITERS
from tests.harness import STAGE1, run

ONE_STEP = [
    "training.max_steps=1",
    "training.validate_every_steps=1",
    "data.split={train: 0.5, val: 0.5, test: 0.0}",
]


@pytest.mark.parametrize("name", WRITERS)
def test_one_step_on_every_layout(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path / "data", 3) or tmp_path / "data"
    config = tmp_path / "config.yaml"
    config.write_text(STAGE1.format(folder=tmp_path), encoding="utf-8")
    changes = [f"--set={change}" for change in (*ONE_STEP, f"data.root={root}")]
    ran = run("prod9-train-autoencoder", "train", "--config", config, *changes, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 1
