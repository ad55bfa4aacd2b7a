"""A source image of the modality that is made: in training it is never shown, in generation it was."""

import numpy as np
import pytest
import torch

import prod9
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import SlidingWindowSection
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.errors import ConfigError
from prod9.models.factory import ModelFactory
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.maisi_control import MAISIControlPipeline

UNET = {
    "latent_channels": 2,
    "num_channels": [4, 4],
    "attention_levels": [False, False],
    "num_head_channels": [0, 4],
    "num_res_blocks": 1,
    "norm_num_groups": 2,
    "num_class_embeds": 4,
}


def random(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network with weights of which none is 0, as after training."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return network


@pytest.fixture(scope="module")
def pipeline() -> MAISIControlPipeline:
    sizes = {"num_channels": [4, 4], "num_res_blocks": [1, 1], "norm_num_groups": 2}
    autoencoder = AutoencoderKlMaisi(latent_channels=2, **sizes)
    generator = MAISIPipeline(
        diffusion=random(DiffusionModelRF(**UNET)),
        autoencoder=ModelFactory.create_inference_wrapper(autoencoder, SlidingWindowSection()),
        sampler=RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=1),
        scale_factor=1.0,
        label_map={"T1": 1, "T2": 2, "FLAIR": 3},
        grid=(8, 8, 8),
        affine=np.eye(4),
    )
    control = ControlNetRF(
        downsampling_factor=2, conditions=("image",), source_modalities=("T1", "T2"), channels=(4, 4), **UNET
    )
    return MAISIControlPipeline(generator=generator, controlnet=random(control))


@pytest.mark.parametrize(("label", "is_left_out"), [(1, True), (3, False)])
def test_f07_what_is_made_is_not_shown(pipeline: MAISIControlPipeline, label: int, is_left_out: bool) -> None:
    """``prod9 generate control -s T1=… -s T2=…`` makes all modalities, and T1 saw the T1 that it was to make."""
    images = np.random.default_rng(0).random((1, 2, 8, 8, 8), dtype=np.float32)
    without = images.copy()
    without[:, 0] = 0.0
    before = images.copy()
    shown, hidden = (
        pipeline.sample_label(label, segs=None, seeds=[0], images=given) for given in (images, without)
    )
    assert torch.equal(shown, hidden) is is_left_out
    np.testing.assert_array_equal(images, before)


def test_f07_there_is_one_mean() -> None:
    """``decode="mean"`` with several samples returned the samples, and the mean was thrown away."""
    model = prod9.load("demo/translate", device="cpu")
    with pytest.raises(ConfigError, match="decode: expected sample for 2 samples, got mean"):
        model(sources={}, target="T1", decode="mean", num_samples=2)
