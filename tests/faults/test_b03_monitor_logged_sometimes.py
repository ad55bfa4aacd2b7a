"""A metric that only some validations measure: the last checkpoint is kept and said to be, the run goes on."""

import json
from pathlib import Path

import pytest
import torch

from prod9.errors import ConfigError
from prod9.training.lightning.base import AbstractLightning
from prod9.training.recipes.monitor import _better, check_monitor, monitor_of
from prod9.training.recipes.table import all_recipes
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
    for recipe in all_recipes():
        for name in (*recipe.metrics, "accuracy_level_2"):
            check_monitor(f"val/{name}", recipe)


def picked_by(make_config, **section):
    return monitor_of(make_config("transformer", "run", callbacks={"checkpoint": section}))


def test_b3_the_better_direction_follows_from_the_metric(make_config):
    # Until now the direction was that of the stage's default metric: the worst accuracy was kept.
    assert picked_by(make_config) == ("val/loss", "min")
    assert picked_by(make_config, monitor="val/accuracy") == ("val/accuracy", "max")
    assert picked_by(make_config, monitor="val/accuracy_level_2") == ("val/accuracy_level_2", "max")
    assert picked_by(make_config, monitor="val/fid", mode="min") == ("val/fid", "min")


def test_b3_what_every_recipe_picks_by_has_the_direction_of_its_name(make_config):
    for recipe in all_recipes():
        assert _better(recipe.monitor[0].removeprefix("val/")) == recipe.monitor[1]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mode": "max"}, "expected min for val/loss, got max"),
        ({"monitor": "val/accuracy", "mode": "min"}, "expected max for val/accuracy, got min"),
        ({"monitor": "val/codes_that_agree"}, "expected min or max for val/codes_that_agree"),
    ],
)
def test_b3_a_direction_that_keeps_the_worst_is_refused(section, message, make_config):
    with pytest.raises(ConfigError, match=rf"callbacks\.checkpoint\.mode: {message}"):
        picked_by(make_config, **section)


def test_b3_a_resumed_run_with_another_metric_ranks_anew(make_config, memory_data):
    config = run(make_config, checkpoint={"save_top_k": 3})
    train(config)
    again = run(make_config, checkpoint={"monitor": "val/accuracy", "save_top_k": 3})
    train(
        again.model_copy(update={"training": again.training.model_copy(update={"max_steps": 5})}),
        resume="auto",
    )
    ranking = json.loads((Path(config.output_dir) / "checkpoints" / "best.json").read_text())
    # Losses are no accuracies: only the validation that measured one is ranked.
    assert [entry["step"] for entry in ranking] == [5]
