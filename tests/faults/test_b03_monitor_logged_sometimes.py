"""A metric that only some validations measure: the last checkpoint is kept and said to be, the run goes on."""

import json
from pathlib import Path

import pytest
import torch

from prod9.errors import ConfigError
from prod9.training.lightning.base import AbstractLightning
from prod9.training.recipes.table import RECIPES, check_monitor, metric_names
from prod9.training.run import train


def sometimes(monkeypatch, values):
    """Let the validation at each step of ``values`` measure ``val/fid`` too."""
    log = AbstractLightning._log_tally

    def with_fid(self, part):
        log(self, part)
        if self.step in values:
            self.log("val/fid", torch.tensor(values[self.step]))

    monkeypatch.setattr(AbstractLightning, "_log_tally", with_fid)


def run(make_config, **callbacks):
    return make_config(
        "transformer",
        "run",
        training={"validate_every_steps": 1, "max_steps": 4},
        callbacks={"checkpoint": {"monitor": "val/fid", "mode": "min", "save_top_k": 3}, "num_samples": 0}
        | callbacks,
    )


def test_b3_only_what_was_measured_is_ranked(make_config, memory_data, monkeypatch, caplog):
    sometimes(monkeypatch, {2: 7.0, 4: 9.0})
    config = run(make_config)
    result = train(config)
    assert result.step == 4
    ranking = json.loads((Path(config.output_dir) / "checkpoints" / "best.json").read_text())
    # The value of step 2 is not that of step 3, which measured none.
    assert [(entry["step"], entry["value"]) for entry in ranking] == [(2, 7.0), (4, 9.0)]
    assert caplog.text.count("no such metric in this validation") == 2
    assert "kept as the last one" in caplog.text


def test_b3_never_measured_keeps_the_last(make_config, memory_data):
    assert train(run(make_config)).checkpoint.name == "last.ckpt"


def test_b3_early_stopping_does_not_end_a_run_for_want_of_a_metric(make_config, memory_data, monkeypatch):
    sometimes(monkeypatch, {1: 7.0, 4: 6.0})
    assert train(run(make_config, early_stopping={"patience": 2})).step == 4


@pytest.mark.parametrize("name", ["val/los", "val/lossx", "loss", "train/total", "val/accurcy"])
def test_b3_a_slip_is_refused_before_anything_starts(name, make_config, memory_data):
    config = make_config("transformer", "run", callbacks={"checkpoint": {"monitor": name}, "num_samples": 0})
    with pytest.raises(ConfigError, match=r"callbacks\.checkpoint\.monitor: expected one of .*val/loss"):
        train(config)
    assert not (Path(config.output_dir) / "checkpoints").exists()


def test_b3_the_usual_names_and_those_of_levels_are_believed():
    for stage in RECIPES:
        for name in metric_names(stage):
            check_monitor(f"val/{name}", stage)
    check_monitor("val/accuracy_level_2", "transformer")
    check_monitor("val/kid", "maisi_controlnet")
