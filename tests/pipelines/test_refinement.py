"""The refiner beside a translator: found, called, and refused where it does not fit."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prod9.config.load import config_from_dict
from prod9.errors import CheckpointError
from prod9.models.checkpoint_file import write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager, make_header
from prod9.models.factory import ModelFactory
from prod9.pipelines.refinement import find_refiner, load_refiner, places_beside
from tests.pipelines.test_translation import GRID, LABELS, build, sources

TRANSLATOR = "a" * 64


def write_refiner(path: Path, *, translator: str = TRANSLATOR, labels: dict[str, int] = LABELS) -> None:
    config = config_from_dict(
        {
            "stage": "refiner",
            "output_dir": "x",
            "data": {"root": "x", "grid": list(GRID)},
            "model": {"num_channels": [8, 8], "space_to_depth": 2},
        },
        source="test",
    )
    assert config.stage == "refiner"
    torch.manual_seed(1)
    network = ModelFactory.create_refiner(config.model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    header = make_header(
        config,
        architecture={"refiner": config.model.model_dump(mode="json")},
        step=1,
        split={"train": ["a"], "val": ["b"], "test": []},
        inputs={"transformer": {"path": "x", "relative": "x", "sha256": translator}},
        data={
            "grid": list(GRID),
            "label_map": labels,
            "spacing": None,
            "intensity": {},
            "reference_affine": [],
        },
    )
    state = {f"refiner.{name}": tensor for name, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"prod9": header, "state_dict": state}, path)


@pytest.fixture
def pipeline() -> Any:
    pipeline = build()
    pipeline.generator.sha256["transformer"] = TRANSLATOR
    return pipeline


def test_what_lies_beside_the_model_is_used(tmp_path: Path, pipeline: Any) -> None:
    run = tmp_path / "stage2"
    (run / "checkpoints").mkdir(parents=True)
    assert find_refiner(run, pipeline.generator) is None
    write_refiner(tmp_path / "stage2_refiner" / "checkpoints" / "last.ckpt")
    pipeline.refiner = find_refiner(run, pipeline.generator)
    assert pipeline.refiner is not None
    assert pipeline.sha256["refiner"] == pipeline.refiner.sha256
    given = sources("T1", "T2")
    plain = pipeline.translate(given, "FLAIR", decode="mean", refine=False).mean
    refined = pipeline.translate(given, "FLAIR", decode="mean").mean
    assert not np.allclose(plain, refined)
    assert 0 <= refined.min() < refined.max() <= 1


def test_runs_checkpoints_and_exports_have_the_same_neighbours(tmp_path: Path) -> None:
    run = tmp_path / "stage2"
    (run / "checkpoints").mkdir(parents=True)
    expected = [tmp_path / "stage2_refiner", run / "refiner"]
    for model in (run, run / "checkpoints", run / "checkpoints" / "last.ckpt"):
        assert places_beside(model) == expected


def test_a_refiner_of_another_translator_is_refused_by_name_and_passed_over_otherwise(
    tmp_path: Path, pipeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_refiner(tmp_path / "stage2_refiner" / "checkpoints" / "last.ckpt", translator="b" * 64)
    (tmp_path / "stage2").mkdir()
    with pytest.raises(CheckpointError, match="got that of another"):
        load_refiner(tmp_path / "stage2_refiner", pipeline.generator)
    with caplog.at_level(logging.WARNING, logger="prod9"):
        assert find_refiner(tmp_path / "stage2", pipeline.generator) is None
    assert "Going on without a refiner" in caplog.text


def test_other_labels_and_other_stages_are_refused(tmp_path: Path, pipeline: Any) -> None:
    write_refiner(tmp_path / "last.ckpt", labels={**LABELS, "T1": 3, "FLAIR": 0})
    with pytest.raises(CheckpointError, match="expected the labels"):
        load_refiner(tmp_path / "last.ckpt", pipeline.generator)
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of stage transformer, got stage refiner"
    ):
        CheckpointManager.load_transformer(tmp_path / "last.ckpt")
