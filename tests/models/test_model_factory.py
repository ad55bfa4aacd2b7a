"""ModelFactory: every setting of a section reaches the class that it builds."""

import pytest
import torch

from prod9.config.schema import (
    AutoencoderLossConfig,
    DecoderModelConfig,
    DiscriminatorConfig,
    FSQModelConfig,
    MaskingConfig,
    SamplerConfig,
    SlidingWindowSection,
    TransformerLossConfig,
)
from prod9.errors import ConfigError
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from prod9.training.recipes.autoencoders import FSQRecipe, build_loss
from tests.training.tiny import autoencoder_config

FSQ = FSQModelConfig(levels=(5, 6), num_channels=(8, 8), num_res_blocks=(1, 1), norm_num_groups=4)


def test_the_same_section_builds_the_same_parameters():
    first, second = ModelFactory.create_autoencoder(FSQ), ModelFactory.create_autoencoder(FSQ)
    assert [(n, p.shape) for n, p in first.named_parameters()] == [
        (n, p.shape) for n, p in second.named_parameters()
    ]
    assert first.levels == (5, 6)


def test_the_codebook_alone_equals_that_of_the_network():
    network, codebook = ModelFactory.create_autoencoder(FSQ), ModelFactory.create_quantizer(FSQ)
    tokens = torch.arange(30).view(1, 30, 1, 1)
    assert torch.equal(network.indices_to_codes(tokens), codebook.indices_to_codes(tokens))


def test_the_loss_takes_every_setting_of_its_section():
    section = AutoencoderLossConfig.model_validate(
        {
            "reconstruction": "l2",
            "reconstruction_weight": 2.0,
            "perceptual": {"network": "focal_frequency", "weight": 0.3},
            "adversarial": {
                "weight": 0.4, "criterion": "hinge", "start_step": 7, "adaptive": False, "adaptive_max": 9.0,
                "gradient_penalty": 0.5,
            },
            "commitment_weight": 0.6,
            "range_weight": 0.7,
        }
    )  # fmt: skip
    loss = build_loss(section)
    assert vars(loss) | {"perceptual": None} == {
        "reconstruction": "l2", "reconstruction_weight": 2.0, "perceptual": None, "perceptual_weight": 0.3,
        "adversarial_weight": 0.4, "criterion": "hinge", "adaptive": False, "adaptive_max": 9.0, "start_step": 7,
        "gradient_penalty": 0.5, "regularizers": {"commitment": 0.6, "range": 0.7, "kl": 0.0},
        "warmup_steps": {"kl": 0},
    }  # fmt: skip
    assert type(loss.perceptual).__name__ == "FocalFrequencyLoss"


def test_lpips_is_measured_only_when_it_is_weighed(monkeypatch, tmp_path):
    monkeypatch.setenv("PROD9_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loss = {"adversarial": {"weight": 0.0}}
    assert FSQRecipe(autoencoder_config(tmp_path, tmp_path, loss=loss)).algorithm.lpips is None
    weighed = {"combined_metric": {"lpips": 1.0}}
    with pytest.raises(ConfigError, match="alex"):
        FSQRecipe(autoencoder_config(tmp_path, tmp_path, loss=loss, callbacks=weighed))


def test_sampler_and_training_share_one_schedule_unless_the_sampler_has_its_own():
    masking = MaskingConfig(scheduler_type="arccos")
    sampler = ModelFactory.create_sampler(SamplerConfig(steps=5, order="halton", top_p=0.9), masking)
    assert (sampler.scheduler.scheduler_type, sampler.steps, sampler.top_p) == ("arccos", 5, 0.9)
    own = ModelFactory.create_sampler(SamplerConfig(scheduler="cosine"), masking)
    assert own.scheduler.scheduler_type == "cosine"


def test_the_transformer_trainer_takes_every_setting_of_its_section():
    section = TransformerLossConfig(label_smoothing=0.2, condition_dropout=0.3, background_weight=0.4)
    model = DecoderModelConfig(embed_dim=16, num_blocks=1, num_heads=2)
    decoder = ModelFactory.create_transformer(model, levels=(5, 6))
    scheduler = ModelFactory.create_scheduler(MaskingConfig())
    trainer = TransformerTrainer(decoder=decoder, scheduler=scheduler, **section.kwargs())
    assert {name: getattr(trainer, name) for name in section.kwargs()} == section.kwargs()


def test_windows_can_be_read_from_a_header():
    network = ModelFactory.create_autoencoder(FSQ)
    section = SlidingWindowSection(roi_size=(8, 8, 8), strategy="sliding_window")
    built = ModelFactory.create_inference_wrapper(network, section.model_dump(mode="json"))
    assert built.config == ModelFactory.create_inference_wrapper(network, section).config


def test_the_discriminator_returns_features_and_logits():
    network = ModelFactory.create_discriminator(DiscriminatorConfig(channels=4, num_layers_d=1))
    assert network(torch.rand(1, 1, 8, 8, 8))[-1].shape[:2] == (1, 1)
