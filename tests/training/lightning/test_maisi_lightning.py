"""Training the MAISI family: what is annealed, scaled, kept and sampled."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.maisi import MAISIPipeline
from prod9.training import run
from prod9.training.lightning.maisi_diffusion_lightning import MAISIDiffusionLightning
from prod9.training.lightning.maisi_vae_lightning import MAISIVAELightning
from prod9.training.run import train
from tests.training.tiny_maisi import LABELS

ADVERSARIAL = {"start_step": 0, "discriminator": {"channels": 4, "num_layers_d": 1}}


def test_the_vae_trains_and_reports_its_latent(make_config, memory_data):
    config = make_config("maisi_vae", "run")
    result = train(config)
    assert result.step == 6
    assert {"val/psnr_brain", "val/ssim", "val/kl", "val/latent_std", "val/combined_metric"} <= set(
        result.metrics
    )
    loaded = CheckpointManager.load_autoencoder(config.output_dir, stage="maisi_vae")
    x = torch.rand(1, 1, 16, 16, 16)
    first, second = (loaded.network(x).reconstruction for _ in range(2))
    assert torch.equal(first, second)  # deterministic in evaluation


def test_no_gradient_of_the_generator_stays_in_the_discriminator(make_config):
    module = run.build_module(make_config("maisi_vae", "run", loss={"adversarial": ADVERSARIAL}))
    assert isinstance(module, MAISIVAELightning)
    x = torch.rand(2, 1, 16, 16, 16)
    losses, _ = module.algorithm.compute_generator_losses(
        x, step=0, generator=torch.Generator().manual_seed(0)
    )
    losses["total"].backward()
    assert all(p.grad is None for p in module.discriminator.parameters())
    assert any(p.grad is not None for p in module.autoencoder.quant_conv_log_sigma.parameters())


def test_the_flow_trains_keeps_its_scale_and_generates(make_config, memory_data, tmp_path):
    config = make_config("maisi_diffusion", "run")
    result = train(config)
    assert {"val/loss", "val/loss_near_data", "val/loss_near_noise", "val/sample_distance"} <= set(
        result.metrics
    )
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    loaded = CheckpointManager.load_diffusion(config.output_dir)
    assert loaded.header["data"]["scale_factor"] == 0.5  # 1 over the deviation of the store

    # Starting from these weights keeps their scale, whatever the new latents are.
    memory_data["latent_std"] = 8.0
    train(make_config("maisi_diffusion", "tuned", training={"max_steps": 1}), init_from=config.output_dir)
    tuned = CheckpointManager.open(tmp_path / "tuned")
    assert tuned.header["data"]["scale_factor"] == 0.5
    metrics = run.validate(config)
    assert np.isfinite(metrics["val/loss"])

    pipeline = MAISIPipeline.from_checkpoint(config.output_dir, overrides=["sampler.steps=1"])
    one, two = pipeline.generate("T2", num_samples=2, seed=3, batch_size=2)
    assert one.data.shape == (16, 16, 16)
    assert 0 <= one.data.min() < one.data.max() <= 1
    (again,) = pipeline.generate(LABELS["T2"], num_samples=1, seed=3, start=1)
    np.testing.assert_allclose(again.data, two.data, atol=1e-5)
    assert again.seed == two.seed == 4


def test_another_spacing_is_tried_with_a_warning(make_config, memory_data, caplog):
    config = make_config("maisi_diffusion", "run", training={"max_steps": 1}, callbacks={"num_samples": 0})
    train(config)
    pipeline = MAISIPipeline.from_checkpoint(config.output_dir, spacing=(2.0, 4.0, 4.0))
    assert "spacing 2 × 4 × 4 mm was not trained on" in caplog.text
    np.testing.assert_allclose(np.diag(pipeline.affine), [2.0, 4.0, 4.0, 1.0])
    trained = np.diag([4.0, 4.0, 4.0, 1.0])
    centre = np.array([7.5, 7.5, 7.5, 1.0])
    np.testing.assert_allclose(pipeline.affine @ centre, trained @ centre)


def test_what_does_not_fit_is_refused(make_config):
    config = make_config("maisi_diffusion", "run", inputs={"autoencoder": None})
    with pytest.raises(ConfigError, match=r"inputs\.autoencoder: expected the run folder"):
        MAISIDiffusionLightning(config)
    with pytest.raises(ConfigError, match="0 means unknown here"):
        make_config("maisi_diffusion", "run", data={"label_map": {"T1": 0, "T1ce": 1, "T2": 2, "FLAIR": 3}})
    with pytest.raises(ConfigError, match="num_head_channels\\[1\\]: expected a divisor"):
        make_config("maisi_diffusion", "run", model={"num_head_channels": [0, 0]})
    with pytest.raises(ConfigError, match="one entry per entry of num_channels"):
        make_config("maisi_diffusion", "run", model={"attention_levels": [False]})


def test_the_annealed_weight_grows_to_its_value(make_config):
    module = run.build_module(make_config("maisi_vae", "run", loss={"kl_weight": 2.0}))
    loss = module.algorithm.loss
    assert [loss._warm("kl", step) for step in (0, 1, 3, 4, None)] == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_checkpoints_name_their_stage(make_config, memory_data, tmp_path):
    config = make_config("maisi_vae", "run", training={"max_steps": 1}, callbacks={"num_samples": 0})
    train(config)
    assert CheckpointManager.open(tmp_path / "run").header["stage"] == "maisi_vae"
    export = CheckpointManager.export(tmp_path / "run", Path(tmp_path) / "export")
    assert CheckpointManager.from_pretrained(export).header["stage"] == "maisi_vae"
