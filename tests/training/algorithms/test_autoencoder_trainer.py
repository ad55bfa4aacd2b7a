"""AutoencoderTrainer: both losses, the adaptive weight and the step of the discriminator."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prod9.measures.metrics import CombinedMetric
from prod9.measures.perceptual import FeatureMatching, FocalFrequencyLoss
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer, _averages
from prod9.training.losses import VAEGANLoss
from prod9.types import AutoencoderOutput
from tests.draws import repeated

from ..test_losses import OPTIONS


class TinyAutoencoder(nn.Module):
    """Two convolutions and a rounding to three levels a channel."""

    levels = (3, 3)
    vocab_size = 9

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(1, 2, 2, stride=2)
        self.decoder = nn.ConvTranspose3d(2, 1, 2, stride=2)
        self.dropout = nn.Dropout(0.5)

    @property
    def last_layer(self):
        return self.decoder.weight

    def forward(self, x):
        z = 6 * (self.encoder(x) - self.encoder(x).mean())  # all levels occur
        bounded = z.tanh()
        codes = bounded + (bounded.round() - bounded).detach()
        digits = codes.detach().round().long() + 1
        tokens = digits[:, 0] + 3 * digits[:, 1]
        return AutoencoderOutput(
            reconstruction=self.dropout(self.decoder(codes)), latent=codes, z_mu=z, tokens=tokens
        )


class SamplingAutoencoder(TinyAutoencoder):
    """A continuous latent that is drawn."""

    def forward(self, x, *, generator=None):
        mu = self.encoder(x)
        z = mu + torch.randn(mu.shape, generator=generator)
        return AutoencoderOutput(
            reconstruction=self.decoder(z), latent=z, z_mu=mu, z_sigma=torch.ones_like(mu)
        )


class TinyDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Conv3d(1, 3, 2, stride=2)
        self.norm = nn.BatchNorm3d(3)
        self.logits = nn.Conv3d(3, 1, 1)

    def forward(self, x):
        h = nn.functional.leaky_relu(self.norm(self.hidden(x)), 0.2)
        return [h, self.logits(h)]


@pytest.fixture(autouse=True)
def same_weights_every_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def setup():
    def make(autoencoder=None, **options):
        loss = VAEGANLoss(**OPTIONS | options)
        networks = SimpleNamespace(
            autoencoder=autoencoder or TinyAutoencoder(), discriminator=TinyDiscriminator()
        )
        trainer = AutoencoderTrainer(
            autoencoder=networks.autoencoder,
            discriminator=networks.discriminator,
            loss=loss,
            sampling=isinstance(autoencoder, SamplingAutoencoder),
        )
        return trainer, networks

    return make


def _batch():
    return torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def _grads(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("perceptual", [None, FocalFrequencyLoss(), FeatureMatching()])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_generator_leaves_no_gradient_in_the_discriminator(setup, perceptual, adaptive):
    trainer, networks = setup(perceptual=perceptual, perceptual_weight=1.0, adaptive=adaptive)
    losses, output = trainer.compute_generator_losses(_batch(), step=0)
    assert output.reconstruction.requires_grad
    assert all(g is None for g in _grads(networks.autoencoder))  # nothing is differentiated on the way
    losses["total"].backward()
    assert all(g is None for g in _grads(networks.discriminator))
    assert all(p.requires_grad for p in networks.discriminator.parameters())
    assert all(g is not None and g.abs().sum() > 0 for g in _grads(networks.autoencoder))


def test_the_adversarial_term_moves_the_autoencoder(setup):
    trainer, networks = setup(adversarial_weight=1.0)
    networks.autoencoder.eval()
    gradients = []
    for step, start in ((0, 0), (0, 1)):
        trainer.loss.start_step = start
        networks.autoencoder.zero_grad()
        trainer.compute_generator_losses(_batch(), step=step)[0]["total"].backward()
        gradients.append(networks.autoencoder.decoder.weight.grad.clone())
    assert not torch.allclose(*gradients)


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer(setup):
    trainer, networks = setup(adversarial_weight=1.0, adaptive=True)
    networks.autoencoder.eval()
    losses, output = trainer.compute_generator_losses(_batch(), step=0)
    last = networks.autoencoder.last_layer
    x = _batch()
    reconstruction = (output.reconstruction - x).abs().mean()
    adversarial = (networks.discriminator(output.reconstruction)[-1] - 1).square().mean()
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last)
    ratio = (wanted.norm() / given.norm()).item()
    assert losses["adversarial_weight"].item() == pytest.approx(ratio, rel=1e-3)


def test_nothing_is_adversarial_before_the_start_step(setup):
    trainer, networks = setup(start_step=5)
    losses, output = trainer.compute_generator_losses(_batch(), step=4)
    assert "adversarial" not in losses
    before = [p.clone() for p in networks.discriminator.parameters()]
    optimizer = torch.optim.SGD(networks.discriminator.parameters(), lr=1.0)
    arguments = {"backward": torch.Tensor.backward}
    assert trainer.update_discriminator(_batch(), output.reconstruction, optimizer, step=4, **arguments) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, networks.discriminator.parameters(), strict=True))
    assert "adversarial" in trainer.compute_generator_losses(_batch(), step=5)[0]
    assert trainer.update_discriminator(_batch(), output.reconstruction, optimizer, step=5, **arguments)


def test_the_discriminator_step_uses_the_given_backward_and_clip_and_spares_the_autoencoder(setup):
    trainer, networks = setup(gradient_penalty=1.0)
    _, output = trainer.compute_generator_losses(_batch(), step=0)
    calls = []
    optimizer = torch.optim.SGD(networks.discriminator.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))

    def backward(loss):
        calls.append("backward")
        loss.backward()

    real = _batch()
    losses = trainer.update_discriminator(
        real, output.reconstruction, optimizer, step=0, backward=backward, clip=lambda _: calls.append("clip")
    )
    assert calls == ["backward", "clip", "step"]
    assert losses["gradient_penalty"] > 0
    assert not any(value.requires_grad for value in losses.values())
    assert all(g is None for g in _grads(networks.autoencoder))
    assert not real.requires_grad


def test_the_discriminator_learns_to_tell_them_apart(setup):
    trainer, networks = setup(criterion="hinge")
    optimizer = torch.optim.Adam(networks.discriminator.parameters(), lr=1e-2)
    networks.discriminator.eval()  # batch statistics would hide the difference in scale
    real, fake = _batch(), 0.2 * _batch()
    for step in repeated(60):
        losses = trainer.update_discriminator(
            real, fake, optimizer, step=step, backward=torch.Tensor.backward
        )
    assert losses["logits_real"] > losses["logits_fake"] + 1.0


def test_metrics_are_deterministic_and_restore_the_mode(setup):
    trainer, networks = setup()
    trainer.combined = CombinedMetric(psnr=1.0, ssim=1.0, lpips=0.0)
    trainer.lpips = FocalFrequencyLoss()  # any distance will do
    networks.autoencoder.encoder.eval()  # a submodule someone froze stays frozen
    metrics = trainer.compute_metrics(_batch())
    again = trainer.compute_metrics(_batch())
    assert networks.autoencoder.training
    assert not networks.autoencoder.encoder.training
    assert set(metrics) == {
        "psnr", "psnr_brain", "psnr_brain_averages", "ssim", "l1", "lpips", "combined_metric",
        "codebook_usage", "perplexity", "level_usage_0", "level_usage_1",
    }  # fmt: skip
    assert all(torch.equal(metrics[k], again[k]) for k in metrics)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_sampling_autoencoder_takes_the_generator(setup):
    trainer, _ = setup(autoencoder=SamplingAutoencoder())
    totals = [
        trainer.compute_generator_losses(_batch(), step=0, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert totals[0]["reconstruction"] == totals[1]["reconstruction"] != totals[2]["reconstruction"]
    assert "perplexity" not in trainer.compute_metrics(_batch())


def test_perceptual_networks_stay_out_of_state_dicts():
    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.autoencoder = TinyAutoencoder()
            perceptual = nn.Conv3d(1, 1, 1)
            self.loss = VAEGANLoss(**OPTIONS | {"adversarial_weight": 0.0, "perceptual": perceptual})
            self.algorithm = AutoencoderTrainer(
                autoencoder=self.autoencoder, discriminator=None, loss=self.loss, lpips=perceptual
            )

    assert all(name.startswith("autoencoder.") for name in Adapter().state_dict())


def test_an_adversarial_loss_needs_a_discriminator():
    with pytest.raises(ValueError, match="discriminator: expected one for an adversarial weight"):
        AutoencoderTrainer(autoencoder=TinyAutoencoder(), discriminator=None, loss=VAEGANLoss(**OPTIONS))


def test_the_yardstick_is_what_one_number_per_cell_holds():
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16, 16)
    assert torch.allclose(_averages(torch.full_like(ramp, 0.3), (4, 4, 4)), torch.full_like(ramp, 0.3))
    inner = slice(2, -2)  # beyond the centres of the outermost cells nothing can be interpolated
    assert torch.allclose(_averages(ramp, (4, 4, 4))[..., inner], ramp[..., inner], atol=1e-5)
