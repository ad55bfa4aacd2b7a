"""A run that went on with another metric to choose by compared its values with those of the old one: 0.9 SSIM lost
against 25 dB for ever, without a word, and on a finished run the option did nothing, without a word too."""

import json
from pathlib import Path

import pytest

from prod9.training.callbacks import build_callbacks
from prod9.training.lightning.base import AbstractLightning
from prod9.training.run import build_module, train
from prod9.training.running.stops import StopWithoutImprovement


def ranking(config):
    return json.loads((Path(config.output_dir) / "checkpoints" / "best.json").read_text())


def config_of(make_config, steps, **callbacks):
    training = {"validate_every_steps": 1, "max_steps": steps}
    return make_config("autoencoder", "run", training=training, callbacks={"num_samples": 0} | callbacks)


@pytest.mark.parametrize(
    "other",
    [
        {"checkpoint": {"monitor": "val/l1", "mode": "min"}},
        {"combined_metric": {"psnr": 0.0, "ssim": 1.0}},
    ],
)
def test_the_ranking_begins_anew(other, make_config, memory_data, caplog):
    train(config_of(make_config, 2))
    (old,) = ranking(config_of(make_config, 2))
    config = config_of(make_config, 3, **other)
    train(config, resume="auto")
    (new,) = ranking(config)
    assert new["step"] == 3
    assert "the ranking by val/" in caplog.text
    assert "callbacks.c" in caplog.text.split("other settings than before: ")[1]
    assert not (Path(config.output_dir) / "checkpoints" / old["file"]).exists()


def test_the_same_metric_goes_on(make_config, memory_data, monkeypatch, caplog):
    log = AbstractLightning._log_scores

    def falling(self, part, scores):
        log(self, part, {name: -0.0 * value - self.step for name, value in scores.items()})

    monkeypatch.setattr(AbstractLightning, "_log_scores", falling)
    train(config_of(make_config, 2))
    config = config_of(make_config, 3)
    train(config, resume="auto")
    assert [entry["step"] for entry in ranking(config)] == [1]
    assert "the ranking by" not in caplog.text


def test_a_finished_run_says_that_it_had_no_effect(make_config, memory_data, caplog):
    train(config_of(make_config, 2))
    train(config_of(make_config, 2, checkpoint={"monitor": "val/l1", "mode": "min"}), resume="auto")
    assert "callbacks.checkpoint.mode, callbacks.checkpoint.monitor had no effect" in caplog.text


def test_patience_begins_anew_with_other_weights(make_config):
    def stopper(psnr):
        config = config_of(make_config, 2, early_stopping={"patience": 3}, combined_metric={"psnr": psnr})
        found = build_callbacks(config, build_module(config))
        return next(one for one in found if isinstance(one, StopWithoutImprovement))

    before = stopper(1.0)
    before.wait_count = 2
    same, other = stopper(1.0), stopper(0.5)
    same.load_state_dict(before.state_dict())
    other.load_state_dict(before.state_dict())
    assert (same.wait_count, other.wait_count) == (2, 0)
