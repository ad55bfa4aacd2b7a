"""The native layers give MONAI's and torch's numbers, and gradients, on every path."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiConvolution, MaisiGroupNorm3D
from torch import nn

from prod9.autoencoder.native import conv as native_conv
from prod9.autoencoder.native import norm as native_norm
from prod9.autoencoder.native.ops import NativeConvolution, NativeGroupNorm3D, bfloat16_pays, use_native_ops
from tests.autoencoder.tiny import build, build_monai, volume

LAYOUT = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["C", "CL"])


def gradients(function, *tensors):
    tensors = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    out = function(*tensors)
    weights = volume(*out.shape, seed=9).to(out.dtype) - 0.5
    return out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)


def norm_of(weight, bias, groups):
    norm = nn.GroupNorm(groups, len(weight), eps=1e-6)
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight, bias
    return norm


@pytest.fixture(params=[0, 2**15], ids=["blocks", "centred"])
def kernel(request, monkeypatch):
    """Send channels-last volumes of any size through one of the two kernels."""
    monkeypatch.setattr(native_norm, "_SMALL", request.param)


@LAYOUT
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (8, 8), (6, 1)])
def test_group_norm_and_its_gradients_equal_float64(channels, groups, silu, layout, monkeypatch):
    monkeypatch.setattr(native_norm, "_BLOCK_ELEMENTS", 500)  # several blocks, the last one short
    x = (volume(2, channels, 7, 9, 8) * 3 + 10).to(memory_format=layout)
    weight, bias = volume(channels, seed=1), volume(channels, seed=2)

    def reference(x, weight, bias):
        y = F.group_norm(x, groups, weight, bias, 1e-6)
        return F.silu(y) if silu else y

    expected = gradients(reference, x.double(), weight.double(), bias.double())
    result = gradients(
        lambda x, w, b: native_norm.group_norm(x, norm_of(w, b, groups), silu=silu), x, weight, bias
    )
    assert result[0].is_contiguous(memory_format=layout)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=2e-5)


@pytest.mark.usefixtures("kernel")
def test_a_large_mean_costs_no_accuracy():
    x = (torch.randn(1, 8, 24, 24, 24, generator=torch.Generator().manual_seed(0)) + 30).to(
        memory_format=torch.channels_last_3d
    )
    norm = nn.GroupNorm(8, 8)
    expected = norm.double()(x.double())
    error = (native_norm.group_norm(x, norm.float(), silu=False) - expected).abs().max()
    assert error < 1e-5


@pytest.mark.usefixtures("kernel")
def test_group_norm_can_be_differentiated_twice():
    x = volume(1, 4, 2, 2, 2).to(memory_format=torch.channels_last_3d).requires_grad_()
    norm = nn.GroupNorm(2, 4)

    def gradient(function):
        (first,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = gradient(lambda x: F.silu(norm(x)))
    result = gradient(lambda x: native_norm.group_norm(x, norm, silu=True))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


def test_float64_volumes_are_not_rounded():
    x = volume(1, 4, 3, 3, 3).double().to(memory_format=torch.channels_last_3d)
    norm = nn.GroupNorm(2, 4).double()
    assert torch.equal(native_norm.group_norm(x, norm, silu=False), norm(x))


@pytest.mark.usefixtures("kernel")
def test_half_precision_volumes_keep_their_dtype():
    norm = nn.GroupNorm(2, 8)
    x = volume(1, 8, 4, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last_3d).requires_grad_()
    y = native_norm.group_norm(x, norm, silu=True)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.silu(norm(x.float())), rtol=0.02, atol=0.02)


@pytest.mark.usefixtures("kernel")
def test_memory_is_reused_only_when_no_gradient_needs_it():
    norm = nn.GroupNorm(2, 8)
    x = volume(2, 8, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    expected = F.silu(norm(x))
    before = x.clone()
    torch.testing.assert_close(native_norm.group_norm(x, norm, silu=True, reuse=True), expected)
    assert torch.equal(x, before)  # the norm's weights are trained
    with torch.no_grad():
        torch.testing.assert_close(native_norm.group_norm(x, norm, silu=True, reuse=True), expected)
    assert torch.equal(x, before) == (native_norm._SMALL > 0)


@given(
    sides=st.tuples(*[st.integers(3, 9)] * 3),
    channels=st.sampled_from([(1, 3), (3, 1), (4, 5)]),
    kernel=st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 0), (3, 1, 0)]),
    batch=st.integers(1, 2),
    channels_last=st.booleans(),
)
def test_convolutions_equal_torchs(sides, channels, kernel, batch, channels_last):
    torch.manual_seed(0)
    conv = nn.Conv3d(*channels, *kernel)
    x = volume(batch, channels[0], *sides)
    if channels_last:
        conv, x = conv.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    expected = gradients(conv, x)
    result = gradients(lambda x: native_conv.convolve(conv, x), x)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for parameter in (conv.weight, conv.bias):
        (want,) = torch.autograd.grad(conv(x).square().sum(), parameter)
        (got,) = torch.autograd.grad(native_conv.convolve(conv, x).square().sum(), parameter)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_small_convolutions_can_be_differentiated_twice():
    conv = nn.Conv3d(2, 3, 3, padding=1)
    x = volume(1, 2, 4, 5, 4).requires_grad_()

    def gradient(function):
        (first,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = gradient(conv)
    torch.testing.assert_close(
        gradient(lambda x: native_conv.convolve(conv, x)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradients_asked_for_are_computed(wanted):
    conv = nn.Conv3d(2, 3, 3, padding=1)
    conv.weight.requires_grad_(wanted[1])
    x = volume(1, 2, 6, 6, 6).requires_grad_(wanted[0])
    native_conv.convolve(conv, x).sum().backward()
    assert (x.grad is not None, conv.weight.grad is not None) == wanted


@given(
    num_slabs=st.integers(2, 20),
    axis=st.integers(0, 2),
    sides=st.tuples(*[st.integers(3, 11)] * 3),
    kernel=st.sampled_from([(3, 1, 1), (3, 2, 0), (1, 1, 0)]),
)
def test_slabs_change_nothing(num_slabs, axis, sides, kernel):
    conv = nn.Conv3d(2, 3, *kernel)
    x = volume(1, 2, *sides)
    torch.testing.assert_close(native_conv.convolve_in_slabs(conv, x, num_slabs, axis), conv(x))


def test_named_padding_is_refused():
    with pytest.raises(ValueError, match="padding: expected numbers of voxels"):
        native_conv.convolve_in_slabs(nn.Conv3d(1, 1, 3, padding="same"), volume(1, 1, 4, 4, 4), 2, 0)


@pytest.mark.parametrize("num_splits", [2, 5])
@pytest.mark.parametrize("dim_split", [0, 1, 2])
def test_a_split_network_gives_the_same_volume(num_splits, dim_split):
    x = volume(1, 1, 12, 8, 20)
    whole, split = build_monai(), build_monai(num_splits=num_splits, dim_split=dim_split)
    use_native_ops(whole)
    use_native_ops(split)
    torch.testing.assert_close(split.reconstruct(x), whole.reconstruct(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_inference_has_the_layout_of_the_fast_operators_whatever_the_weights_have(training):
    network, layouts = build(), []
    for block in network.decoder.blocks:
        block.register_forward_hook(
            lambda module, args, out: layouts.append(
                args[0].is_contiguous(memory_format=torch.channels_last_3d)
            )
        )
    with torch.set_grad_enabled(training):
        network.decode(volume(1, network.latent_channels, 4, 3, 2))
    assert len(layouts) > 3
    assert not any(layouts) if training else all(layouts)


def test_layers_are_swapped_in_place_without_touching_the_state():
    network = build_monai(attention_levels=(False, False, True))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    use_native_ops(network)
    kinds = {type(m) for m in network.modules()}
    assert {NativeConvolution, NativeGroupNorm3D} <= kinds
    assert not kinds & {MaisiConvolution, MaisiGroupNorm3D}
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"architecture": "x86_64", "avx2": True, "cpu_name": "Intel Core"}, False),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_half_precision_is_used_where_the_processor_has_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bfloat16_pays.__wrapped__("cpu") is expected
    assert bfloat16_pays.__wrapped__("cuda")
