"""Callbacks of a run: checkpoints, early stopping and averaged weights."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from prod9.errors import ConfigError
from prod9.measures.montage import write_montage
from prod9.models import checkpoint_file
from prod9.models.checkpoint_file import read_checkpoint, write_checkpoint
from prod9.system.stopping import Watch
from prod9.training import callbacks
from prod9.training.callbacks import InterruptedTrainingError, KeepCheckpoints
from prod9.training.lightning.base import AbstractLightning
from prod9.training.run import train


def names(config):
    return sorted(file.name for file in (Path(config.output_dir) / "checkpoints").glob("*.ckpt"))


def test_the_best_checkpoints_are_kept_in_order_and_the_others_removed(make_config, memory_data):
    config = make_config(
        "transformer",
        "run",
        training={"validate_every_steps": 1, "max_steps": 5},
        callbacks={"checkpoint": {"save_top_k": 2}, "num_samples": 0},
    )
    result = train(config)

    ranking = json.loads((Path(config.output_dir) / "checkpoints" / "best.json").read_text())
    assert [entry["value"] for entry in ranking] == sorted(entry["value"] for entry in ranking)
    assert names(config) == sorted([entry["file"] for entry in ranking] + ["last.ckpt", "previous.ckpt"])
    assert result.checkpoint.name == ranking[0]["file"]
    assert read_checkpoint(result.checkpoint)[0]["prod9"]["step"] == ranking[0]["step"]


def test_saves_fall_on_their_steps_and_a_validation_is_added_at_the_end(
    make_config, memory_data, monkeypatch
):
    steps: list[int] = []
    save = KeepCheckpoints.save_last
    monkeypatch.setattr(
        KeepCheckpoints,
        "save_last",
        lambda self, t: (steps.append(t.lightning_module.step), save(self, t))[1],
    )
    train(make_config("autoencoder", "run", callbacks={"checkpoint": {"every_steps": 3}, "num_samples": 0}))
    # Every 3 steps, after the validation of step 4, and after the last one.
    assert steps == [3, 4, 6, 6]


def test_an_unknown_monitor_lists_what_there_is(make_config, memory_data):
    config = make_config(
        "transformer", "run", callbacks={"checkpoint": {"monitor": "val/los"}, "num_samples": 0}
    )
    with pytest.raises(ConfigError, match=r"expected one of .*val/loss.*got 'val/los'"):
        train(config)


def test_early_stopping_counts_validations(make_config, memory_data):
    config = make_config(
        "transformer",
        "run",
        training={"max_steps": 50, "validate_every_steps": 1, "learning_rate": 1e-12, "ema": None},
        callbacks={"early_stopping": {"patience": 2, "min_delta": 1.0}, "num_samples": 0},
    )
    assert train(config).step == 3


def test_averages_follow_the_decay_from_the_start_step(make_config, memory_data, monkeypatch):
    seen: list[torch.Tensor] = []
    finish = AbstractLightning.training_step

    def note(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        seen.append(self.decoder.head.weight.detach().clone())

    monkeypatch.setattr(AbstractLightning, "training_step", note)
    config = make_config(
        "transformer", "run", training={"ema": {"decay": 0.5, "start_step": 3}}, callbacks={"num_samples": 0}
    )
    train(config)

    expected = seen[2]
    for weight in seen[3:]:
        expected = 0.5 * expected + 0.5 * weight
    content, _ = read_checkpoint(Path(config.output_dir) / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(content["state_dict"]["decoder.head.weight"], expected)
    assert torch.equal(content["current_model_state"]["decoder.head.weight"], seen[-1])


def test_averaging_copies_buffers_and_counts_batches_of_a_gan_once(make_config, memory_data):
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    train(config)
    content, _ = read_checkpoint(Path(config.output_dir) / "checkpoints" / "last.ckpt")
    assert content["averaging_state"]["n_averaged"] == 6
    buffers = [name for name in content["state_dict"] if name.endswith(("basis", "levels"))]
    assert all(torch.equal(content["state_dict"][n], content["current_model_state"][n]) for n in buffers)


def test_validation_sees_averaged_weights_and_training_goes_on_with_its_own(
    make_config, memory_data, monkeypatch
):
    weights: dict[str, list[torch.Tensor]] = {"train": [], "sample": []}
    finish, sample = AbstractLightning.training_step, AbstractLightning.sample_validation

    def note_train(self, batch, batch_idx):
        weights["train"].append(self.decoder.head.weight.detach().clone())
        finish(self, batch, batch_idx)
        weights["train"].append(self.decoder.head.weight.detach().clone())

    def note_sample(self, num_samples):
        weights["sample"].append(self.decoder.head.weight.detach().clone())
        return sample(self, num_samples)

    monkeypatch.setattr(AbstractLightning, "training_step", note_train)
    monkeypatch.setattr(AbstractLightning, "sample_validation", note_sample)
    train(make_config("transformer", "run"))

    before, after = weights["train"][1::2], weights["train"][2::2]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=False))
    assert not torch.equal(weights["sample"][0], before[3])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_the_step_and_says_how_to_go_on(
    signum, make_config, memory_data, monkeypatch, last_state, run_json
):
    finish = AbstractLightning.training_step

    def interrupt_the_third(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        if self.step == 3:
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(AbstractLightning, "training_step", interrupt_the_third)
        config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
        with pytest.raises(InterruptedTrainingError, match=r"after step 3 .*--resume") as caught:
            train(config)
    assert caught.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is before
    assert last_state(Path(config.output_dir))["step"] == 3
    assert not (Path(config.output_dir) / ".lock").exists()

    whole = make_config("autoencoder", "whole", callbacks={"num_samples": 0})
    train(config, resume="auto")
    train(whole)
    a, b = (last_state(Path(c.output_dir))["state_dict"] for c in (config, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_second_interrupt_stops_at_once():
    said: list[str] = []
    watch = Watch(said.append)
    watch.gentle = True
    watch.note(signal.SIGINT)
    assert len(said) == 1
    with pytest.raises(KeyboardInterrupt):
        watch.note(signal.SIGINT)


def test_pictures_are_written_at_each_validation(make_config, memory_data, monkeypatch):
    monkeypatch.setattr(callbacks, "write_montage", write_montage)
    for stage in ("autoencoder", "transformer"):
        config = make_config(stage, stage)
        train(config)
        pictures = sorted(file.name for file in (Path(config.output_dir) / "samples").iterdir())
        assert pictures == ["step-000004.png", "step-000006.png"]


def test_best_checkpoints_are_copied_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    write_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    monkeypatch.setattr(checkpoint_file.os, "link", refuse)
    checkpoint_file.link_checkpoint(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert read_checkpoint(tmp_path / "best.ckpt")[0] == {"step": 1}
