"""VAEGANLoss and its parts against definitions and MONAI."""

import pytest
import torch
from monai.losses import PatchAdversarialLoss
from torch import nn

from prod9.measures.perceptual import FeatureMatching, FocalFrequencyLoss
from prod9.training.losses import (
    VAEGANLoss,
    adaptive_weight,
    commitment_loss,
    discriminator_adversarial_loss,
    generator_adversarial_loss,
    r1_penalty,
    range_penalty,
)
from prod9.types import AutoencoderOutput

OPTIONS = {
    "reconstruction": "l1",
    "reconstruction_weight": 1.0,
    "perceptual": None,
    "perceptual_weight": 0.0,
    "adversarial_weight": 0.1,
    "criterion": "least_squares",
    "adaptive": False,
    "adaptive_max": 1e4,
    "start_step": 0,
    "commitment_weight": 0.0,
    "range_weight": 0.0,
}


def _logits(seed=0):
    return torch.randn(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_hinge_follows_its_definition():
    real, fake = _logits(0), _logits(1)
    expected = 0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean())
    torch.testing.assert_close(discriminator_adversarial_loss(real, fake, "hinge"), expected)
    torch.testing.assert_close(generator_adversarial_loss(fake, "hinge"), -fake.mean())


@pytest.mark.parametrize("criterion", ["least_squares", "bce"])
def test_criteria_agree_with_monai_where_it_keeps_to_the_papers(criterion):
    real, fake = _logits(0), _logits(1)
    peer = PatchAdversarialLoss(criterion=criterion, no_activation_leastsq=True)
    theirs = 0.5 * (peer(real, True, True) + peer(fake, False, True))
    torch.testing.assert_close(discriminator_adversarial_loss(real, fake, criterion), theirs)
    torch.testing.assert_close(generator_adversarial_loss(fake, criterion), peer(fake, True, False))


@pytest.mark.parametrize("side", [8, 16])
def test_r1_of_a_linear_discriminator_is_half_its_squared_weight_at_any_size(side):
    # Patches don't overlap, so each contributes |w|², and the mean over patches is |w|².
    network = nn.Conv3d(1, 1, 4, stride=4)
    x = torch.rand(2, 1, side, side, side, requires_grad=True)
    penalty = r1_penalty(network(x), x)
    torch.testing.assert_close(penalty, 0.5 * network.weight.square().sum())
    (gradient,) = torch.autograd.grad(penalty, network.weight)
    torch.testing.assert_close(gradient, network.weight.detach())


def test_adaptive_weight_of_linear_losses_is_the_ratio_of_their_slopes():
    w = torch.ones(4, requires_grad=True)
    reference, adversarial = (3 * w).sum(), (-0.5 * w).sum()
    assert adaptive_weight(reference, adversarial, w, maximum=1e4).item() == pytest.approx(6.0, rel=1e-4)
    assert adaptive_weight(reference, adversarial, w, maximum=2.0).item() == 2.0
    assert adaptive_weight(reference, 0 * adversarial, w, maximum=1e4).item() == 1e4
    assert not adaptive_weight(reference, adversarial, w, maximum=2.0).requires_grad
    assert w.grad is None


def test_regularizers():
    z = torch.tensor([-3.0, -2.0, 0.0, 4.0]).view(1, 1, 1, 1, 4).requires_grad_()
    torch.testing.assert_close(range_penalty(z), torch.tensor((1.0 + 4.0) / 4))
    codes = torch.zeros_like(z).requires_grad_()
    loss = commitment_loss(z, codes)
    torch.testing.assert_close(loss, torch.tensor((9.0 + 4.0 + 16.0) / 4))
    loss.backward()
    assert codes.grad is None
    assert z.grad is not None


def _output(reconstruction):
    z = torch.full((1, 2, 2, 2, 2), 3.0)
    return AutoencoderOutput(reconstruction=reconstruction, latent=torch.ones_like(z), z_mu=z)


def _losses(loss, reconstruction, target, fake=None, real=None):
    return loss.generator_losses(
        target,
        _output(reconstruction),
        last_layer=reconstruction,
        fake_features=fake,
        real_features=real,
    )


def test_total_is_the_weighted_sum_of_the_parts():
    options = OPTIONS | {"reconstruction_weight": 2.0, "commitment_weight": 0.5, "range_weight": 0.25}
    options |= {"perceptual": FocalFrequencyLoss(), "perceptual_weight": 0.3}
    target = torch.rand(1, 1, 4, 4, 4)
    reconstruction = (target + 0.1 * torch.rand_like(target)).requires_grad_()
    losses = _losses(VAEGANLoss(**options), reconstruction, target, fake=[_logits()])
    assert losses["commitment"].item() == 4.0
    assert losses["range"].item() == 1.0
    expected = (
        2.0 * losses["reconstruction"]
        + 0.3 * losses["perceptual"]
        + 0.1 * losses["adversarial"]
        + 0.5 * losses["commitment"]
        + 0.25 * losses["range"]
    )
    torch.testing.assert_close(losses["total"].detach(), expected)
    assert [name for name, value in losses.items() if value.requires_grad] == ["total"]


def test_terms_that_are_off_do_not_appear():
    target = torch.rand(1, 1, 4, 4, 4)
    losses = _losses(VAEGANLoss(**OPTIONS), target.clone().requires_grad_(), target)
    assert set(losses) == {"total", "reconstruction"}


def test_reconstruction_distances():
    target = torch.zeros(1, 1, 2, 2, 2)
    pred = (target + 0.5).requires_grad_()
    for name, expected in (("l1", 0.5), ("l2", 0.25)):
        loss = VAEGANLoss(**OPTIONS | {"reconstruction": name})
        assert _losses(loss, pred, target)["reconstruction"].item() == expected


def test_feature_matching_leaves_out_the_logits_and_needs_a_discriminator():
    hidden = torch.zeros(1, 2, 2, 2, 2)
    fake, real = [hidden, _logits(0)], [hidden + 0.5, _logits(1)]
    loss = VAEGANLoss(**OPTIONS | {"perceptual": FeatureMatching(), "perceptual_weight": 1.0})
    target = torch.rand(1, 1, 4, 4, 4)
    losses = _losses(loss, target.clone().requires_grad_(), target, fake=fake, real=real)
    assert losses["perceptual"].item() == 0.5
    with pytest.raises(ValueError, match="perceptual: expected a discriminator"):
        VAEGANLoss(**OPTIONS | {"perceptual": FeatureMatching(), "adversarial_weight": 0.0})


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="criterion: expected one of hinge"):
        VAEGANLoss(**OPTIONS | {"criterion": "wasserstein"})
    with pytest.raises(ValueError, match="reconstruction: expected one of l1"):
        VAEGANLoss(**OPTIONS | {"reconstruction": "huber"})


def test_losses_are_float32_under_bf16():
    target = torch.rand(1, 1, 4, 4, 4)
    reconstruction = target.bfloat16().requires_grad_()
    losses = _losses(VAEGANLoss(**OPTIONS), reconstruction, target, fake=[_logits().bfloat16()])
    assert {value.dtype for value in losses.values()} == {torch.float32}
