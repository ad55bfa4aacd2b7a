"""NaN in a held-out batch names the case and ends nothing; skipped steps count in a row."""

import json
import math
from pathlib import Path

import pytest
import torch

from prod9.errors import TrainingError
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer
from prod9.training.run import test as measure
from prod9.training.run import train
from tests.training.tiny import MemoryData


def spoil(monkeypatch, index, key):
    item = MemoryData.__getitem__

    def spoilt(self, at):
        sample = item(self, at)
        if at == index and key in sample:
            sample[key] = sample[key].float().clone()
            sample[key].view(-1)[3] = math.nan
        return sample

    monkeypatch.setattr(MemoryData, "__getitem__", spoilt)


@pytest.mark.parametrize(
    ("stage", "key"), [("autoencoder", "image"), ("maisi_vae", "image"), ("maisi_diffusion", "latent")]
)
def test_r23_a_case_with_nan_is_named_and_left_out(stage, key, make_config, memory_data, monkeypatch, caplog):
    spoil(monkeypatch, 101, key)
    result = train(make_config(stage, "run", callbacks={"num_samples": 1}))
    assert "case101" in caplog.text
    assert key in caplog.text
    assert result.step == 6
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.checkpoint.name.startswith("best")


def test_r23_all_cases_with_nan_leave_the_last_checkpoint(make_config, memory_data, monkeypatch, caplog):
    for index in (100, 101):
        spoil(monkeypatch, index, "image")
    result = train(make_config("autoencoder", "run", callbacks={"num_samples": 0}))
    assert result.checkpoint.name == "last.ckpt"
    assert "case100" in caplog.text


def test_r23_a_network_that_gives_nan_is_named_with_the_case_and_never_the_best(
    make_config, memory_data, monkeypatch, caplog
):
    compute = AutoencoderTrainer.tally
    calls = []

    def sometimes(self, x):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the latent holds NaN or infinity; lower the learning rate or check the input.")
        return compute(self, x)

    monkeypatch.setattr(AutoencoderTrainer, "tally", sometimes)
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    train(config)
    assert "case101 cannot be measured: the latent holds NaN" in caplog.text
    (best,) = json.loads((Path(config.output_dir) / "checkpoints" / "best.json").read_text())
    assert best["step"] == 6


def test_r23_another_mistake_is_not_swallowed(make_config, memory_data, monkeypatch):
    def broken(self, x):
        raise ValueError("shapes do not fit")

    monkeypatch.setattr(AutoencoderTrainer, "tally", broken)
    with pytest.raises(ValueError, match="shapes"):
        train(make_config("autoencoder", "run", callbacks={"num_samples": 0}))


def test_r23_testing_goes_on_too(make_config, memory_data, monkeypatch, caplog):
    config = make_config("autoencoder", "run", training={"max_steps": 1}, callbacks={"num_samples": 0})
    train(config)
    spoil(monkeypatch, 100, "image")
    metrics = measure(config)
    assert "case100" in caplog.text
    assert math.isfinite(metrics["test/psnr"])


def test_r31_rare_bad_steps_do_not_add_up(make_config, memory_data, caplog):
    memory_data["bad_steps"] = {1, 3, 5}
    config = make_config(
        "autoencoder", "run", training={"max_skipped_steps": 2}, callbacks={"num_samples": 0}
    )
    assert train(config).step == 6
    assert "(3 so far)" in caplog.text


def test_r31_a_row_counts_across_a_resumption(make_config, memory_data, last_state):
    memory_data["bad_steps"] = {1, 2, 3}
    keep = {"checkpoint": {"every_steps": 1}, "num_samples": 0}
    config = make_config("autoencoder", "run", training={"max_skipped_steps": 3}, callbacks=keep)
    memory_data["stop_before"] = 3
    with pytest.raises(RuntimeError, match="power"):
        train(config)
    memory_data["stop_before"] = None
    with pytest.raises(TrainingError, match="got 3 steps without, in a row"):
        train(config, resume="auto")


def test_r31_a_first_batch_with_nan_spoils_no_weights(make_config, memory_data, last_state):
    memory_data["bad_steps"] = {0}
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    train(config)
    state = last_state(Path(config.output_dir))["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
