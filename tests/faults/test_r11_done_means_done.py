"""A run is finished when its last validation is, and a resumed one makes up for what it missed."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prod9.models.checkpoint_file import read_checkpoint
from prod9.training.callbacks import InterruptedTrainingError
from prod9.training.lightning.base import AbstractLightning
from prod9.training.run import train
from prod9.training.running.keeping import KeepCheckpoints


def header_of(output_dir: str, name: str = "last.ckpt"):
    return read_checkpoint(Path(output_dir) / "checkpoints" / name)[0]["prod9"]


def same_end(a, b, last_state):
    first, second = (last_state(Path(config.output_dir)) for config in (a, b))
    assert first["step"] == second["step"]
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    rankings = [json.loads((Path(c.output_dir) / "checkpoints" / "best.json").read_text()) for c in (a, b)]
    assert rankings[0] == rankings[1]
    metrics = [json.loads((Path(c.output_dir) / "metrics.json").read_text()) for c in (a, b)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("step", [4, 6])
def test_r11_a_signal_between_a_step_and_its_validation(
    step, make_config, memory_data, monkeypatch, last_state
):
    finish = AbstractLightning.training_step

    def interrupt(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    broken, whole = (
        make_config("transformer", name, callbacks={"num_samples": 1}) for name in ("broken", "whole")
    )
    with monkeypatch.context() as patch:
        patch.setattr(AbstractLightning, "training_step", interrupt)
        with pytest.raises(InterruptedTrainingError, match=f"after step {step}"):
            train(broken)
    assert header_of(broken.output_dir)["validated"] == (0 if step == 4 else 4)
    result = train(broken, resume="auto")
    assert result.step == 6
    assert header_of(broken.output_dir)["validated"] == 6
    assert train(whole).metrics == result.metrics
    same_end(broken, whole, last_state)


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
@pytest.mark.parametrize("at", [4, 6])
def test_r11_killed_in_the_middle_of_a_validation(
    stage, at, make_config, memory_data, monkeypatch, last_state
):
    keep = {"checkpoint": {"every_steps": 2}, "num_samples": 0}
    broken, whole = (make_config(stage, name, callbacks=keep) for name in ("broken", "whole"))
    evaluate = AbstractLightning.validation_step

    def die(self, batch, batch_idx):
        if self.step == at and batch_idx == 1:
            raise RuntimeError("the power went")
        evaluate(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(AbstractLightning, "validation_step", die)
        with pytest.raises(RuntimeError, match="power"):
            train(broken)
    assert header_of(broken.output_dir)["step"] == at
    train(broken, resume="auto")
    train(whole)
    same_end(broken, whole, last_state)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_r3_a_signal_in_a_validation_saves_the_weights_that_train(
    signum, make_config, memory_data, monkeypatch, last_state
):
    broken, whole = (
        make_config("transformer", name, callbacks={"num_samples": 0}) for name in ("broken", "whole")
    )
    evaluate = AbstractLightning.validation_step

    def interrupt(self, batch, batch_idx):
        evaluate(self, batch, batch_idx)
        if self.step == 4 and batch_idx == 0:
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patch:
        patch.setattr(AbstractLightning, "validation_step", interrupt)
        with pytest.raises(InterruptedTrainingError, match="after step 4") as caught:
            train(broken)
    assert caught.value.exit_code == 128 + signum
    assert header_of(broken.output_dir)["validated"] == 0
    train(broken, resume="auto")
    train(whole)
    same_end(broken, whole, last_state)


def test_r11_killed_between_the_files_of_the_last_save(make_config, memory_data, monkeypatch, last_state):
    """The best file and the index are there, last.ckpt is still the one before."""
    from prod9.training.running import keeping

    keep = {"checkpoint": {"every_steps": 5}, "num_samples": 0}
    broken, whole = (make_config("transformer", name, callbacks=keep) for name in ("broken", "whole"))

    def die(*args, **kwargs):
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "link_checkpoint", die)
        with pytest.raises(RuntimeError, match="power"):
            train(broken)
    train(broken, resume="auto")
    train(whole)
    same_end(broken, whole, last_state)


def test_r11_a_run_that_stopped_early_is_finished(make_config, memory_data, monkeypatch):
    sections = {
        "training": {"max_steps": 50, "validate_every_steps": 1, "learning_rate": 1e-12, "ema": None},
        "callbacks": {"early_stopping": {"patience": 2, "min_delta": 1.0}, "num_samples": 0},
    }
    config = make_config("transformer", "run", **sections)
    first = replace(
        train(config), headline=""
    )  # a finished run is not built, so its yardsticks are not known
    assert first.step == 3
    assert header_of(config.output_dir)["stopped_early"]
    assert replace(train(config, resume="auto"), headline="") == first
    longer = sections | {"callbacks": {"early_stopping": {"patience": 4, "min_delta": 1.0}, "num_samples": 0}}
    assert train(make_config("transformer", "run", **longer), resume="auto").step == 5


def test_r11_an_older_checkpoint_does_not_say_and_is_believed(make_config, memory_data):
    from prod9.models.checkpoint_file import write_checkpoint

    config = make_config("transformer", "run", callbacks={"num_samples": 0})
    first = train(config)
    last = Path(config.output_dir) / "checkpoints" / "last.ckpt"
    content, _ = read_checkpoint(last)
    for name in ("validated", "stopped_early", "digest"):
        del content["prod9"][name]
    content["prod9_run"] = {"skipped_steps": 0}
    write_checkpoint(content, last)
    assert train(config, resume="auto").step == first.step
    longer = make_config("transformer", "run", training={"max_steps": 8}, callbacks={"num_samples": 0})
    assert train(longer, resume="auto").step == 8


def test_r11_every_validation_leaves_its_metrics(make_config, memory_data, monkeypatch):
    seen = []
    save = KeepCheckpoints.save_last

    def note(self, trainer):
        seen.append(json.loads((self.folder.parent / "metrics.json").read_text())["step"])
        save(self, trainer)

    monkeypatch.setattr(KeepCheckpoints, "save_last", note)
    train(make_config("transformer", "run", callbacks={"num_samples": 0}))
    assert seen == [4, 6]
