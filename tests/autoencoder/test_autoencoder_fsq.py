"""AutoencoderFSQ: MONAI's weights and numbers, exact tokens, and what it must refuse."""

import copy
import inspect

import pytest
import torch
from jaxtyping import TypeCheckError

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.backbone import MaisiBackbone
from prod9.autoencoder.factory import AUTOENCODERS, build_autoencoder
from prod9.config.schema import FSQModelConfig
from tests.autoencoder.tiny import LEVELS, NETWORK, build, build_monai, volume, with_weights_of

VARIANTS = [{}, {"use_convtranspose": True}, {"attention_levels": (False, False, True)}]


def relative(a, b):
    return float(((a - b).abs().max() / a.abs().max()).detach())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_parameters_are_monais_but_for_the_variance(changes):
    theirs = {k: v.shape for k, v in build_monai(**changes).state_dict().items()}
    ours = {k: v.shape for k, v in build(**changes).state_dict().items() if not k.startswith("quantizer.")}
    variance = {k for k in theirs if k.startswith("quant_conv_log_sigma")}
    assert variance
    assert ours == {k: v for k, v in theirs.items() if k not in variance}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_same_weights_give_monais_numbers(changes, batch, channels_last):
    peer = build_monai(**changes)
    ours = with_weights_of(build(**changes), peer)
    if channels_last:
        ours = ours.to(memory_format=torch.channels_last_3d)
    x = volume(batch, 1, 16, 12, 20)
    z, expected = ours.encode(x), peer.encode(x)[0]
    assert relative(expected, z) < 1e-5
    assert relative(peer.decode(expected), ours.decode(expected)) < 1e-5


def test_gradients_are_monais():
    peer = build_monai()
    ours = with_weights_of(build(), peer).to(memory_format=torch.channels_last_3d)
    x = volume(2, 1, 8, 12, 8)
    peer.reconstruct(x).square().sum().backward()
    ours.decode(ours.encode(x)).square().sum().backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative(theirs[name].grad, parameter.grad) < 1e-4, name


def test_every_parameter_gets_a_gradient():
    network = build()
    network(volume(1, 1, 8, 8, 8)).reconstruction.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_forward_returns_consistent_results(fold):
    network = build(space_to_depth=fold)
    sides = tuple(fold * n for n in (8, 12, 16))
    out = network(volume(2, 1, *sides))
    assert out.reconstruction.shape == (2, 1, *sides)
    assert out.tokens.shape == (2, 2, 3, 4)
    assert out.z_sigma is None
    assert network.downsampling_factor == 4 * fold
    assert torch.equal(network.embed(out.latent), out.tokens)
    assert torch.equal(network.indices_to_codes(out.tokens), out.latent)
    torch.testing.assert_close(network.decode_tokens(out.tokens), out.reconstruction)


def test_it_is_deterministic_in_training_and_evaluation():
    network, x = build(), volume(1, 1, 8, 8, 8)
    first = network.train()(x)
    for mode in (True, False):
        again = network.train(mode)(x)
        assert torch.equal(again.reconstruction, first.reconstruction)
        assert torch.equal(again.tokens, first.tokens)


def test_inherited_entry_points_go_through_the_tokens():
    network, x = build(), volume(1, 1, 8, 8, 8)
    out = network(x)
    assert torch.equal(network.reconstruct(x), out.reconstruction)
    assert torch.equal(network.encode_stage_2_inputs(x), out.latent)
    assert torch.equal(network.decode_stage_2_outputs(out.latent), out.reconstruction)
    with pytest.raises(TypeError, match=r"quantize\(encode"):
        network.sampling(out.z_mu, out.z_mu)


@pytest.mark.parametrize("pays", [False, True])
def test_autocast_leaves_latent_and_volume_in_float32(monkeypatch, pays):
    monkeypatch.setattr("prod9.autoencoder.backbone.bfloat16_pays", lambda device: pays)
    network, x = build(), volume(1, 1, 16, 16, 16)
    network.calibrate(x)
    exact = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x)
        out.reconstruction.mean().backward()
    assert out.z_mu.dtype == out.latent.dtype == out.reconstruction.dtype == torch.float32
    assert torch.equal(network.embed(out.latent), out.tokens)
    assert torch.equal(out.z_mu, exact.z_mu) != pays
    torch.testing.assert_close(out.z_mu, exact.z_mu, rtol=0, atol=0.2)


def test_the_last_encoder_layers_run_in_float32(monkeypatch):
    monkeypatch.setattr("prod9.autoencoder.backbone.bfloat16_pays", lambda device: True)
    network = build()
    seen = {}
    for name, layer in {"last": network.encoder.blocks[-1], "mu": network.quant_conv_mu}.items():
        layer.register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (args[0].dtype, out.dtype)})
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.encode(volume(1, 1, 8, 8, 8))
    assert seen == dict.fromkeys(("last", "mu"), (torch.float32, torch.float32))


def test_half_precision_networks_work():
    network = build().bfloat16()
    assert network.encode(volume(1, 1, 8, 8, 8)).dtype == torch.float32


def test_calibration_centres_and_scales_every_channel():
    network, x = build(), volume(2, 1, 16, 16, 16)
    network.calibrate(x)
    z = network.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(3), rtol=1e-4, atol=0)
    assert all(p.requires_grad for p in network.parameters())


def test_checkpointing_changes_no_gradient():
    x = volume(1, 1, 8, 8, 8)
    gradients = []
    for use_checkpointing in (False, True):
        network = build(use_checkpointing=use_checkpointing)
        network(x).reconstruction.square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_never_become_tokens(value):
    network, x = build(), volume(1, 1, 8, 8, 8)
    x[0, 0, 3, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        network.embed(network.quantize(network.encode(x)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        network.eval()(x)


def test_sides_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(9, 8, 3\); use \(12, 8, 4\)"):
        build().encode(volume(1, 1, 9, 8, 3))


def test_half_precision_norm_is_refused_on_cpu():
    with pytest.raises(ValueError, match="norm_float16"):
        build(norm_float16=True).encode(volume(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="norm_float16"):
        build(norm_float16=True).decode(volume(1, 3, 2, 2, 2))


def test_copies_and_moves_keep_the_fast_layers():
    network, x = build(), volume(1, 1, 8, 8, 8)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    assert [type(m) for m in other.modules()] == [type(m) for m in network.modules()]
    torch.testing.assert_close(other.encode(x), network.encode(x))
    assert build(native_ops=False).encode(x).shape == network.encode(x).shape


def test_it_builds_without_memory():
    with torch.device("meta"):
        network = build()
    assert all(p.is_meta for p in network.parameters())


def test_last_layer_is_the_decoders_last_convolution():
    assert build(out_channels=2).last_layer.shape == (2, 8, 3, 3, 3)


def test_shape_checks_are_live():
    with pytest.raises(TypeCheckError):
        build().encode(volume(1, 8, 8, 8))
    with pytest.raises(TypeCheckError):
        build().embed(volume(3, 2, 2, 2))


def test_the_factory_builds_what_a_configuration_says():
    network = build_autoencoder("fsq", **FSQModelConfig(levels=LEVELS, **NETWORK).kwargs())
    assert type(network) is AUTOENCODERS["fsq"] is AutoencoderFSQ
    with pytest.raises(ValueError, match="kind: expected fsq or kl, got 'vq'"):
        build_autoencoder("vq")


def test_keyword_defaults_are_those_of_the_schema():
    parameters = inspect.signature(MaisiBackbone).parameters | inspect.signature(AutoencoderFSQ).parameters
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty:
            assert parameter.default == FSQModelConfig.model_fields[name].default, name
