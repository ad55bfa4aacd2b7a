"""The variational autoencoder against MONAI's on the same weights, and what differs on purpose."""

import pytest
import torch
from jaxtyping import TypeCheckError

from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.factory import build_autoencoder
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig
from prod9.config.schema import KLModelConfig
from tests.autoencoder.tiny import LEVELS, NETWORK, build_monai, volume


def build(**options):
    torch.manual_seed(1)
    return AutoencoderKlMaisi(latent_channels=len(LEVELS), **{**NETWORK, **options}).eval()


@pytest.mark.parametrize(
    "options", [{}, {"use_convtranspose": True}, {"attention_levels": (False, False, True)}]
)
def test_it_equals_monais_on_the_same_weights(options):
    ours, theirs = build(**options), build_monai(**options).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = volume(1, 1, 8, 16, 12)
    with torch.no_grad():
        for mine, other in zip(ours.encode(x), theirs.encode(x), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        z = theirs.encode(x)[0]
        torch.testing.assert_close(ours.decode(z), theirs.decode(z), rtol=1e-4, atol=1e-5)


def test_evaluation_is_deterministic_and_training_draws_from_its_generator():
    network, x = build(), volume(1, 1, 8, 8, 8)
    assert torch.equal(network(x).reconstruction, network(x).reconstruction)
    assert torch.equal(network(x).latent, network.encode_stage_2_inputs(x))
    network.train()
    draws = [network(x, generator=torch.Generator().manual_seed(s)).latent for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_latent_has_mean_and_deviation():
    network, x = build(), volume(2, 1, 8, 8, 8)
    output = network(x)
    assert output.z_mu.shape == output.z_sigma.shape == (2, 3, 2, 2, 2)
    assert (output.z_sigma > 0).all()
    assert output.tokens is None
    z = network.reparameterize(output.z_mu, 0 * output.z_sigma)
    torch.testing.assert_close(z, output.z_mu)


def test_every_parameter_gets_a_gradient():
    network = build().train()
    output = network(volume(1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    (output.reconstruction.square().mean() + output.z_sigma.mean()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_windows_blend_deviations_as_variances():
    network, x = build(), volume(1, 1, 24, 8, 8)
    wrapper = AutoencoderInferenceWrapper(network, SlidingWindowConfig(roi_size=(16, 8, 8)))
    z_mu, z_sigma = wrapper.encode(x)
    assert z_mu.shape == z_sigma.shape == (1, 3, 6, 2, 2)
    windows = [network.encode(x[:, :, s : s + 16])[1] for s in (0, 8)]
    low = torch.minimum(windows[0][:, :, 2:], windows[1][:, :, :2])
    high = torch.maximum(windows[0][:, :, 2:], windows[1][:, :, :2])
    assert (z_sigma[:, :, 2:4] >= low - 1e-6).all()
    assert (z_sigma[:, :, 2:4] <= high + 1e-6).all()
    with pytest.raises(ValueError, match="autoencoder: expected an AutoencoderFSQ"):
        wrapper.quantize_stage_2_inputs(x)


def test_what_cannot_be_right_is_refused():
    network = build()
    with pytest.raises(ValueError, match=r"multiples of 4, got \(8, 8, 6\)"):
        network.encode(volume(1, 1, 8, 8, 6))
    with pytest.raises(ValueError, match="norm_float16: expected false"):
        build(norm_float16=True).encode(volume(1, 1, 8, 8, 8))
    with pytest.raises(TypeCheckError):
        network.encode(volume(1, 8, 8, 8))


def test_the_factory_builds_what_a_configuration_says():
    section = KLModelConfig(latent_channels=3, **NETWORK)
    assert type(build_autoencoder("kl", **section.kwargs())) is AutoencoderKlMaisi


def test_calibration_gives_every_channel_more_signal_than_noise():
    network, x = build(), volume(2, 1, 16, 16, 16)
    network.calibrate(x)
    z_mu, z_sigma = network.encode(x)
    torch.testing.assert_close(z_mu.mean((0, 2, 3, 4)), torch.zeros(len(LEVELS)), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        z_mu.std((0, 2, 3, 4), correction=0), torch.ones(len(LEVELS)), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(z_sigma, torch.full_like(z_sigma, 0.1))
    network.train()
    network(x).latent.square().mean().backward()
    assert network.quant_conv_log_sigma.conv.weight.grad.abs().max() > 0
