"""Exact inference equals the whole pass, whatever the slabs."""

import pytest
import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig
from tests.autoencoder.tiny import NETWORK, volume


def build(kind="kl", **options):
    torch.manual_seed(0)
    family = {"kl": lambda: AutoencoderKlMaisi(latent_channels=3, **NETWORK, **options)}
    family["fsq"] = lambda: AutoencoderFSQ(levels=(8, 6, 5), **NETWORK, **options)
    network = family[kind]()
    for name, parameter in network.named_parameters():
        if "norm" in name:  # MONAI starts them at 1 and 0, where a lost bias would not show
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval()


def wrapped(network, strategy, **options):
    return AutoencoderInferenceWrapper(network, SlidingWindowConfig(strategy=strategy, **options))


def drifting(*shape):
    """A volume whose mean and contrast change along every axis: wrong statistics would show."""
    x = volume(*shape)
    ramps = [
        torch.linspace(0, 1, n).view([-1 if i == a else 1 for i in range(5)]) for a, n in enumerate(shape)
    ]
    return x * ramps[2] + 0.5 * ramps[3] + 0.3 * ramps[4]


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", ["kl", "fsq"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_convtranspose": True},
        {"space_to_depth": 2},
        {"space_to_depth": 2, "front_end": "haar"},
        {"native_ops": False},
    ],
)
def test_it_equals_the_whole_pass(kind, options):
    network = build(kind, **options)
    factor = network.downsampling_factor
    x = drifting(2, 1, 10 * factor // 2 * 2, 4 * factor, 6 * factor)
    whole, exact = wrapped(network, "whole"), wrapped(network, "exact", num_slabs=5)
    for ours, theirs in zip(exact.encode(x), whole.encode(x), strict=True):
        assert relative(ours, theirs) < 1e-5 or theirs.abs().max() == 0
    latent = whole(x).latent
    assert relative(exact.decode(latent), whole.decode(latent)) < 1e-5


@pytest.mark.parametrize("num_slabs", [1, 3, 100])
def test_the_number_of_slabs_does_not_matter(num_slabs):
    network = build()
    x = drifting(1, 1, 20, 8, 12)
    z, _ = wrapped(network, "exact", num_slabs=num_slabs).encode(x)
    assert relative(z, wrapped(network, "whole").encode(x)[0]) < 1e-5


def test_windows_are_no_match():
    network = build()
    x = drifting(1, 1, 32, 16, 16)
    window, _ = wrapped(network, "sliding_window", roi_size=(16, 16, 16)).encode(x)
    assert relative(window, wrapped(network, "whole").encode(x)[0]) > 1e-2


def test_bfloat16_between_layers_costs_little():
    network = build()
    x = drifting(1, 1, 24, 8, 8)
    z, _ = wrapped(network, "exact", keep_dtype="bfloat16").encode(x)
    assert 1e-6 < relative(z, wrapped(network, "whole").encode(x)[0]) < 0.05


def test_attention_runs_whole_or_is_refused():
    network = build(attention_levels=(False, False, True))
    x = drifting(1, 1, 16, 8, 8)
    z, _ = wrapped(network, "exact", num_slabs=4).encode(x)
    assert relative(z, wrapped(network, "whole").encode(x)[0]) < 1e-5
    with pytest.raises(
        ValueError, match=r"max_attention_tokens: expected at least the 16 positions .*, got 15"
    ):
        wrapped(network, "exact", max_attention_tokens=15).encode(x)


def test_volumes_of_any_size_pass_and_the_network_is_left_as_it_was():
    network = build()
    x = drifting(1, 1, 13, 9, 10)
    exact, whole = wrapped(network, "exact"), wrapped(network, "whole")
    assert relative(exact(x).reconstruction, whole(x).reconstruction) < 1e-5
    assert exact(x).reconstruction.shape == x.shape
    assert network._runner is None


@pytest.mark.parametrize(
    "options", [{"num_slabs": 0}, {"keep_dtype": "float16"}, {"max_attention_tokens": 0}]
)
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        SlidingWindowConfig(strategy="exact", **options)
