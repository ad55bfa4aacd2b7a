"""NaN is no value: it never is the best, takes no place among the best, and stops nothing."""

import json
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch

from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.run_folder import ranked_best, write_index
from prod9.training.lightning.base import AbstractLightning
from prod9.training.run import train
from prod9.training.running.keeping import rank

NAN = math.nan


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("values", list(permutations([NAN, 0.9, 0.5, NAN, math.inf])))
def test_a10_every_order_of_the_same_values_has_one_ranking(mode, values):
    entries = [{"file": str(step), "step": step, "value": value} for step, value in enumerate(values)]
    ranked = [entry["value"] for entry in rank(entries, mode)]
    assert ranked == ([0.5, 0.9, math.inf] if mode == "min" else [math.inf, 0.9, 0.5])


def test_a10_of_equal_values_the_first_stays():
    entries = [{"file": str(step), "step": step, "value": 1.0} for step in (4, 8, 12)]
    assert [entry["step"] for entry in rank(entries, "min")] == [4, 8, 12]
    assert [entry["step"] for entry in rank(entries, "max")] == [4, 8, 12]


def scripted(monkeypatch, values):
    """Let the validations of a run measure ``values`` in turn."""
    measured = iter(values)
    monkeypatch.setattr(
        AbstractLightning, "_log_tally", lambda self, part: self.log("val/loss", torch.tensor(next(measured)))
    )


@pytest.mark.parametrize(("top", "kept"), [(1, [3]), (2, [3, 2])])
def test_a10_finite_beats_nan_and_nan_takes_no_place(top, kept, make_config, memory_data, monkeypatch):
    scripted(monkeypatch, [NAN, 0.9, 0.5, NAN])
    config = make_config(
        "transformer",
        "run",
        training={"validate_every_steps": 1, "max_steps": 4},
        callbacks={"checkpoint": {"save_top_k": top}, "num_samples": 0},
    )
    result = train(config)
    folder = Path(config.output_dir) / "checkpoints"
    assert [entry["step"] for entry in json.loads((folder / "best.json").read_text())] == kept
    assert result.checkpoint.name == "best-step=000003.ckpt"
    assert sorted(path.name for path in folder.glob("best-*.ckpt")) == [
        f"best-step=00000{k}.ckpt" for k in sorted(kept)
    ]
    # The file is JSON, which has no NaN.
    assert json.loads((Path(config.output_dir) / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_a10_nan_alone_leaves_the_last(make_config, memory_data, monkeypatch, caplog):
    scripted(monkeypatch, [NAN, NAN])
    result = train(make_config("transformer", "run", callbacks={"num_samples": 0}))
    assert result.checkpoint.name == "last.ckpt"
    assert math.isnan(result.metrics["val/loss"])
    assert "got NaN" in caplog.text


def test_a10_a_run_whose_best_was_nan_heals(make_config, memory_data, monkeypatch):
    """As older versions left it: NaN first in the index and in the ranking of the checkpoint."""
    folder = Path(make_config("transformer", "run").output_dir) / "checkpoints"
    folder.mkdir(parents=True)
    entries = [("best-step=000001.ckpt", NAN), ("best-step=000002.ckpt", 0.5)]
    for name, _ in entries:
        (folder / name).touch()
    write_index(folder, [{"file": name, "step": 1, "value": value} for name, value in entries])
    assert ranked_best(folder)[0] == "best-step=000002.ckpt"
    assert CheckpointManager.resolve(folder.parent).name == "best-step=000002.ckpt"
    (folder / "best.json").write_text(
        '[{"file": "best-step=000001.ckpt", "value": NaN}, {"file": "x", "value": 1}]'
    )
    assert ranked_best(folder)[-1] == "best-step=000001.ckpt"


def test_a10_early_stopping_counts_nan_as_no_improvement(make_config, memory_data, monkeypatch):
    scripted(monkeypatch, [0.9, NAN, 0.5, NAN, NAN, NAN, 0.1])
    config = make_config(
        "transformer",
        "run",
        training={"validate_every_steps": 1, "max_steps": 7},
        callbacks={"early_stopping": {"patience": 3}, "num_samples": 0},
    )
    assert train(config).step == 6
