"""The adapter of stage 1: calibration, both optimizers, samples."""

import numpy as np
import pytest
import torch

from prod9.training import run
from prod9.training.lightning.autoencoder_lightning import AutoencoderLightning
from prod9.training.run import train


@pytest.fixture
def calibrations(monkeypatch):
    """Count the calls of first_batch by step."""
    steps: list[int] = []
    first = AutoencoderLightning.first_batch

    def note(self, x):
        steps.append(self.step)
        first(self, x)

    monkeypatch.setattr(AutoencoderLightning, "first_batch", note)
    return steps


def test_z_is_brought_into_range_once_in_a_fresh_run_only(make_config, memory_data, calibrations):
    first = make_config("autoencoder", "first", training={"max_steps": 2}, callbacks={"num_samples": 0})
    train(first)
    assert calibrations == [0]
    train(make_config("autoencoder", "first", callbacks={"num_samples": 0}), resume="auto")
    second = make_config("autoencoder", "second", training={"max_steps": 1}, callbacks={"num_samples": 0})
    train(second, init_from=first.output_dir)
    assert calibrations == [0]


def test_calibration_gives_each_channel_unit_spread(make_config):
    module = run.build_module(make_config("autoencoder", "run"))
    assert isinstance(module, AutoencoderLightning)
    x = torch.rand(2, 1, 16, 16, 16)
    module.autoencoder.calibrate(x)
    z = module.autoencoder.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_without_adversarial_weight_there_is_no_discriminator(make_config, memory_data):
    config = make_config(
        "autoencoder", "run", loss={"adversarial": {"weight": 0.0}}, callbacks={"num_samples": 0}
    )
    module = run.build_module(config)
    assert list(module.networks()) == ["autoencoder"]
    assert len(module.recipe.peak_rates()) == 1
    assert train(config).step == 6


def test_the_discriminator_rests_until_its_start_step_and_keeps_no_gradient(
    make_config, memory_data, monkeypatch
):
    weights: list[torch.Tensor] = []
    finish = AutoencoderLightning.training_step

    def note(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        weights.append(next(self.discriminator.parameters()).detach().clone())
        assert all(p.grad is None for p in self.parameters())

    monkeypatch.setattr(AutoencoderLightning, "training_step", note)
    train(make_config("autoencoder", "run", callbacks={"num_samples": 0}))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_samples_are_volumes_beside_their_reconstruction(make_config):
    module = run.build_module(make_config("autoencoder", "run"))
    assert isinstance(module, AutoencoderLightning)
    volume = torch.rand(1, 16, 16, 16)
    module.recipe.examples = [{"image": volume[None], "modality": [name]} for name in ("T1", "T2")]
    (row,) = module.eval().sample_validation(1)
    assert [panel.title for panel in row] == ["T1", "T1, reconstructed"]
    assert np.array_equal(row[0].data, volume[0].numpy())
    assert row[1].data.shape == (16, 16, 16)
    assert 0.0 <= row[1].data.min() < row[1].data.max() <= 1.0


def test_perceptual_networks_stay_out_of_the_module_tree(make_config):
    loss = {"perceptual": {"network": "focal_frequency", "weight": 1.0}}
    module = run.build_module(make_config("autoencoder", "run", loss=loss))
    assert {name for name, _ in module.named_children()} == {"autoencoder", "discriminator"}
