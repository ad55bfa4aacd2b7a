"""Kernels written by hand give the same values and gradients whatever the memory layout of their input."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig
from prod9.autoencoder.native import conv as native_conv
from prod9.autoencoder.native import norm as native_norm
from prod9.autoencoder.native import winograd as native_winograd
from prod9.autoencoder.native.voxel_folding import fold_voxels, unfold_voxels
from prod9.diffusion.scheduler import noise_like
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.folding import fold, unfold
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from tests.networks import Inputs, examples

ORDERS = list(permutations(range(5)))


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[Tensor], Tensor]:
    """Return what puts a tensor into other memory: its axes reordered, cut out of a larger one, or repeated."""
    order = draw(st.sampled_from(ORDERS))
    step, offset = draw(st.sampled_from([(1, 0), (1, 1), (2, 0), (2, 1)])), draw(st.integers(0, 4))
    repeated = draw(st.none() | st.integers(0, 4))

    def put(x: Tensor) -> Tensor:
        memory = x.permute(order)
        shape = list(memory.shape)
        axis = offset
        shape[axis] = shape[axis] * step[0] + step[1]
        around = x.new_zeros(shape)
        inside = around.narrow(axis, step[1], shape[axis] - step[1])
        inside = inside[tuple(slice(None, None, step[0] if k == axis else None) for k in range(5))]
        inside.copy_(memory)
        view = inside.permute([order.index(k) for k in range(5)])
        return view if repeated is None else view.narrow(repeated, 0, 1).expand(view.shape)

    return put


LAYOUTS = layouts()
SIDES = st.tuples(*[st.integers(1, 7)] * 3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(function: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """Return the outputs of ``function`` and the gradient of its input; the input is not written to."""
    x = x.detach().requires_grad_()
    before = x.detach().clone()
    out = function(x)
    outputs = list(out) if isinstance(out, tuple) else [out]
    total = sum((y * drawn(*y.shape, seed=9)).sum() for y in outputs if y.requires_grad)
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, x)
    assert torch.equal(x, before)
    with torch.no_grad():
        plain = function(x.detach())
        assert torch.equal(x, before)
    plain = list(plain) if isinstance(plain, tuple) else [plain]
    return [*outputs, gradient, *plain]


def assert_layout_changes_nothing(
    function: Callable[[Tensor], Any], x: Tensor, tolerance: float = 2e-5
) -> None:
    expected = results(function, x.clone(memory_format=torch.contiguous_format))
    for got, want in zip(results(function, x), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@given(put=LAYOUTS, sides=SIDES, batch=st.integers(1, 3), symmetric=st.booleans())
def test_a7_quantiser(put, sides, batch, symmetric):
    quantizer = FiniteScalarQuantizer((8, 6, 5), symmetric=symmetric)
    z = put(drawn(batch, 3, *sides) * 2)
    assert_layout_changes_nothing(quantizer, z, 1e-6)
    codes = put(quantizer.quantize(drawn(batch, 3, *sides)))
    tokens = quantizer.codes_to_indices(codes)
    assert torch.equal(tokens, quantizer.codes_to_indices(codes.contiguous()))
    assert torch.equal(quantizer.indices_to_codes(tokens), codes)
    strided = put(tokens[:, None])[:, 0]
    assert torch.equal(quantizer.indices_to_codes(strided), quantizer.indices_to_codes(strided.contiguous()))


def test_a7_quantiser_of_transposed_latents():
    quantizer = FiniteScalarQuantizer((8, 8, 8, 6, 5))
    z = drawn(2, 5, 7, 6, 9)
    codes, tokens = quantizer(z.transpose(3, 4))
    expected_codes, expected_tokens = quantizer(z)
    assert torch.equal(codes, expected_codes.transpose(3, 4))
    assert torch.equal(tokens, expected_tokens.transpose(2, 3))


@given(
    put=LAYOUTS,
    sides=st.tuples(*[st.integers(3, 7)] * 3),
    batch=st.integers(1, 2),
    kernel=st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 1, 0)]),
    channels=st.sampled_from([(1, 3), (3, 1), (4, 5)]),
    grad=st.sampled_from([torch.contiguous_format, torch.channels_last_3d]),
)
def test_a7_convolution(put, sides, batch, kernel, channels, grad):
    torch.manual_seed(0)
    conv = nn.Conv3d(*channels, *kernel).to(memory_format=grad)
    assert_layout_changes_nothing(
        lambda x: native_conv.convolve(conv, x), put(drawn(batch, channels[0], *sides))
    )


@given(put=LAYOUTS, sides=SIDES, batch=st.integers(1, 2), silu=st.booleans(), small=st.booleans())
def test_a7_group_norm(put, sides, batch, silu, small):
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    if sides == (1, 1, 1):
        sides = (1, 1, 2)
    x = put(drawn(batch, 4, *sides))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_norm, "_SMALL", 2**15 if small else 0)
        assert_layout_changes_nothing(lambda x: native_norm.group_norm(x, norm, silu=silu), x, 1e-3)


@given(put=LAYOUTS, sides=st.tuples(st.integers(6, 11), *[st.integers(1, 5)] * 2), batch=st.integers(1, 2))
def test_a7_winograd(put, sides, batch):
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 3, 3, padding=1)
    x = put(drawn(batch, 4, *sides))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name in ("_LEAST_CHANNELS", "_LEAST_PLANE"):
            patch.setattr(native_winograd, name, 1)
        before = x.clone()
        direct = native_winograd.convolve_planes(x, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(direct, conv(x.contiguous()), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(native_conv.convolve(conv, x), direct, rtol=1e-4, atol=1e-4)
        assert torch.equal(x, before)


@given(put=LAYOUTS, batch=st.integers(1, 2), patch_size=st.sampled_from([1, 2]))
def test_a7_folding(put, batch, patch_size):
    x = put(drawn(batch, 3, 4, 2, 6))
    folded = fold_voxels(x, patch_size)
    assert torch.equal(folded, fold_voxels(x.contiguous(), patch_size))
    assert torch.equal(
        unfold_voxels(put(folded), patch_size), unfold_voxels(put(folded).contiguous(), patch_size)
    )
    rows = fold(x.movedim(1, -1), patch_size)
    assert torch.equal(unfold(rows, (4, 2, 6), patch_size), x.movedim(1, -1))


@given(put=LAYOUTS)
def test_a7_noise_depends_on_the_seed_alone(put):
    x = drawn(2, 3, 4, 5, 6)
    noises = [noise_like(value, torch.Generator().manual_seed(3)) for value in (x, put(x))]
    assert torch.equal(*noises)


@given(put=LAYOUTS)
def test_a7_given_tokens_of_a_sampler(put):
    decoder = examples()["decoder"]().network.eval()
    sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=2, order="halton")
    tokens = put(torch.randint(240, (2, 1, 2, 3, 4), generator=torch.Generator().manual_seed(0)))[:, 0]
    mask = put(torch.rand(2, 1, 2, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.5)[:, 0]

    def sample(tokens: Tensor, mask: Tensor) -> Tensor:
        generators = [torch.Generator().manual_seed(k) for k in range(2)]
        condition = MaskGiTCondition(label=torch.arange(2))
        return sampler.sample(decoder, (2, 2, 3, 4), condition, generators, tokens, mask)

    drawn_tokens = sample(tokens, mask)
    assert torch.equal(drawn_tokens, sample(tokens.contiguous(), mask.contiguous()))
    assert torch.equal(drawn_tokens[~mask], tokens[~mask])


@pytest.mark.parametrize("name", ["fsq", "kl", "refiner"])
@pytest.mark.parametrize("training", [True, False])
def test_a7_whole_networks(name, training):
    network = examples()[name]().network.eval()
    given_inputs = Inputs("cpu").refiner if name == "refiner" else (Inputs("cpu").volume,)
    order = (0, 1, 3, 4, 2)
    strided = [
        x.permute(order).contiguous().permute([order.index(k) for k in range(5)]) if x.ndim == 5 else x
        for x in given_inputs
    ]
    assert not strided[0].is_contiguous()
    with torch.set_grad_enabled(training):
        found = [network(*inputs) for inputs in (strided, given_inputs)]
    ours, theirs = (tuple(out) if name == "refiner" else (out.reconstruction, out.z_mu) for out in found)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["whole", "sliding_window", "exact"])
def test_a7_inference_on_volumes_of_any_size(strategy):
    network = examples()["fsq"]().network.eval()
    config = SlidingWindowConfig(roi_size=(16, 16, 16), strategy=strategy, num_slabs=3)
    wrapper = AutoencoderInferenceWrapper(network, config)
    x = drawn(1, 1, 18, 15, 21).abs().permute(0, 1, 4, 2, 3)
    assert not x.is_contiguous()
    for got, want in zip(wrapper.encode(x), wrapper.encode(x.contiguous()), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    z = wrapper.encode(x)[0].transpose(3, 4)
    torch.testing.assert_close(wrapper.decode(z), wrapper.decode(z.contiguous()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a7_empty_batches(layout):
    x = torch.empty(0, 4, 4, 4, 6).to(memory_format=layout).requires_grad_()
    norm, conv = nn.GroupNorm(2, 4), nn.Conv3d(4, 3, 3, padding=1)
    for silu in (False, True):
        assert native_norm.group_norm(x, norm, silu=silu).shape == x.shape
    assert native_conv.convolve(conv, x).shape == (0, 3, 4, 4, 6)
    quantizer = FiniteScalarQuantizer((8, 6, 5, 5))
    codes, tokens = quantizer(x)
    assert codes.shape == x.shape
    assert tokens.shape == (0, 4, 4, 6)
    assert quantizer.codes_to_indices(codes).shape == tokens.shape
    assert quantizer.indices_to_codes(tokens).shape == x.shape
    assert unfold_voxels(fold_voxels(x, 2), 2).shape == x.shape
    assert unfold(fold(x.movedim(1, -1), 2), (4, 4, 6), 2).shape == (0, 4, 4, 6, 4)
    codes.sum().backward()
    assert x.grad is not None


def test_a7_memory_is_reused_only_without_any_gradient(monkeypatch):
    monkeypatch.setattr(native_norm, "_SMALL", 0)
    norm = nn.GroupNorm(2, 4)
    norm.weight.requires_grad_(False)
    x = drawn(1, 4, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    before = x.clone()
    native_norm.group_norm(x, norm, silu=True, reuse=True).sum().backward()
    assert norm.bias.grad is not None
    assert torch.equal(x, before)


def test_a7_fast_planes_leave_a_trained_bias_its_gradient(monkeypatch):
    for name in ("_LEAST_CHANNELS", "_LEAST_PLANE"):
        monkeypatch.setattr(native_winograd, name, 1)
    conv = nn.Conv3d(4, 3, 3, padding=1)
    conv.weight.requires_grad_(False)
    x = drawn(1, 4, 8, 4, 4).to(memory_format=torch.channels_last_3d)
    native_conv.convolve(conv, x).sum().backward()
    assert conv.bias is not None
    torch.testing.assert_close(conv.bias.grad, torch.full((3,), 128.0))


@pytest.mark.parametrize(
    "how", [{"groups": 2}, {"dilation": 2, "padding": 2}, {"padding_mode": "circular"}, {"padding": "same"}]
)
def test_a7_other_convolutions_are_left_to_torch(how):
    conv = nn.Conv3d(4, 4, 3, **({"padding": 1} | how))
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = drawn(1, 4, 6, 5, 4).to(memory_format=layout)
        torch.testing.assert_close(native_conv.convolve(conv, x), conv(x), rtol=1e-5, atol=1e-5)
