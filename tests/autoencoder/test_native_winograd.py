"""Half the multiplications give the same convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prod9.autoencoder.native import winograd as native_winograd
from prod9.autoencoder.native.conv import convolve, convolve_slab
from prod9.autoencoder.native.winograd import convolve_planes, pays, transforms
from tests.autoencoder.tiny import build, volume


def test_the_transforms_compute_four_values_of_a_correlation_exactly():
    inputs, taps, outputs = transforms()
    planes, kernel = torch.randn(6, 100, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)
    expected = torch.stack([(planes[i : i + 3] * kernel).sum(0) for i in range(4)])
    torch.testing.assert_close(outputs @ ((taps @ kernel) * (inputs @ planes)), expected, rtol=0, atol=1e-13)


@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sides=st.tuples(st.integers(3, 15), st.integers(1, 6), st.integers(1, 6)),
    padding=st.integers(0, 1),
    bias=st.booleans(),
)
def test_any_shape_equals_float64(batch, channels, sides, padding, bias):
    torch.manual_seed(0)
    x = volume(batch, channels[0], *sides) * 4 + 1
    weight = torch.randn(channels[1], channels[0], 3, 3, 3)
    shift = torch.randn(channels[1]) if bias else None
    expected = F.conv3d(
        x.double(), weight.double(), None if shift is None else shift.double(), padding=(padding, 1, 1)
    )
    result = convolve_planes(x.to(memory_format=torch.channels_last_3d), weight, shift, padding)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    assert (result - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1)


def test_only_inference_in_float32_with_many_channels_takes_it():
    x, weight = torch.rand(1, 64, 6, 32, 32), torch.rand(64, 64, 3, 3, 3, requires_grad=True)
    with torch.no_grad():
        assert pays(x, weight)
        assert not pays(x[..., :16], weight)
        assert not pays(x[:, :, :5], weight)
        assert not pays(x[:, :32], weight[:, :32])
        assert not pays(x, weight[..., :1])
        assert not pays(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not pays(x, weight)
    assert pays(x, weight.detach())
    assert not pays(x, weight)


@pytest.fixture
def calls(monkeypatch):
    """Let layers of any size take the fast way, and count those that did."""
    monkeypatch.setattr(native_winograd, "_LEAST_CHANNELS", 1)
    monkeypatch.setattr(native_winograd, "_LEAST_PLANE", 1)
    counted = []

    def counting(*args, **kwargs):
        counted.append(args[0].shape)
        return convolve_planes(*args, **kwargs)

    monkeypatch.setattr(native_winograd, "convolve_planes", counting)
    return counted


@torch.no_grad()
def test_layers_that_it_cannot_compute_are_left_alone(calls):
    x = volume(1, 4, 9, 8, 7).to(memory_format=torch.channels_last_3d)
    for kernel, stride, padding in ((3, 2, 1), (3, 1, 0), (1, 1, 0)):
        conv = nn.Conv3d(4, 4, kernel, stride, padding)
        torch.testing.assert_close(convolve(conv, x), conv(x))
    assert not calls


@torch.no_grad()
def test_a_slab_that_brings_its_planes_equals_the_middle_of_the_whole(calls):
    conv = nn.Conv3d(3, 5, 3, padding=1)
    x = volume(1, 3, 12, 7, 6)
    torch.testing.assert_close(convolve_slab(conv, x[:, :, 2:10]), conv(x)[:, :, 3:9], rtol=1e-5, atol=1e-5)
    assert calls


def test_a_network_gives_the_same_volume_with_gradients_and_without(calls):
    network = build().to(memory_format=torch.channels_last_3d)
    x = volume(1, 1, 24, 16, 16)
    latent = network.encode(x)
    expected = latent.detach(), network.decode(latent).detach()
    assert not calls
    with torch.no_grad():
        result = network.encode(x), network.decode(expected[0])
    assert len(calls) > 10
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
