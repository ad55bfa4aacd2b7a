"""Gradients of gradients of the hand-written kernels are torch's own, whatever needs a gradient."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
from prod9.autoencoder.native import conv as native_conv
from prod9.autoencoder.native import norm as native_norm

NEEDED = [flags for flags in product((False, True), repeat=3) if any(flags)]
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both_orders(
    function: Callable[..., Tensor], values: list[Tensor], needed: tuple[bool, ...]
) -> list[Tensor]:
    """Return first gradients of what is needed, and the gradients of their squares."""
    tensors = [
        v.detach().clone(memory_format=torch.preserve_format).requires_grad_(n)
        for v, n in zip(values, needed, strict=True)
    ]
    wanted = [t for t in tensors if t.requires_grad]
    first = torch.autograd.grad(function(*tensors).pow(3).sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)  # type: ignore[arg-type]
    return [*first, *second]


def assert_as_torchs(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], values: list[Tensor], needed: tuple[bool, ...]
) -> None:
    expected = both_orders(theirs, [v.double() for v in values], needed)
    for got, want in zip(both_orders(ours, values, needed), expected, strict=True):
        scale = float(want.detach().abs().max().clamp_min(1e-6))
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=1e-3, atol=1e-4)


def norm_of(weight: Tensor, bias: Tensor) -> nn.GroupNorm:
    norm = nn.GroupNorm(2, len(weight))
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight, bias  # type: ignore[assignment]
    return norm


@pytest.mark.parametrize("needed", NEEDED)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("small", [0, 2**15], ids=["blocks", "centred"])
def test_b2_group_norm(needed, silu, small, monkeypatch):
    monkeypatch.setattr(native_norm, "_SMALL", small)
    x = drawn(2, 4, 3, 2, 5).to(memory_format=torch.channels_last_3d)
    values = [x, drawn(4, seed=1) + 1, drawn(4, seed=2)]

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.group_norm(x, 2, weight, bias)
        return F.silu(y) if silu else y

    assert_as_torchs(
        lambda x, w, b: native_norm.group_norm(x, norm_of(w, b), silu=silu), theirs, values, needed
    )


@pytest.mark.parametrize("small", [0, 2**15], ids=["blocks", "centred"])
def test_b2_frozen_norm_behind_a_trained_layer(small, monkeypatch):
    monkeypatch.setattr(native_norm, "_SMALL", small)
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(2, 4).requires_grad_(False), nn.Conv3d(2, 4, 1)
    x = drawn(1, 2, 3, 3, 3).to(memory_format=torch.channels_last_3d).requires_grad_()
    y = native_norm.group_norm(conv(x).contiguous(memory_format=torch.channels_last_3d), norm, silu=True)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    first.square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("small", [0, 2**15], ids=["blocks", "centred"])
def test_b2_half_precision_volumes(small, monkeypatch):
    monkeypatch.setattr(native_norm, "_SMALL", small)
    norm = nn.GroupNorm(2, 4).requires_grad_(False)
    x = drawn(1, 4, 4, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last_3d).requires_grad_()
    (first,) = torch.autograd.grad(
        native_norm.group_norm(x, norm, silu=True).float().pow(2).sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(first.float().square().sum(), x)
    assert first.dtype == second.dtype == torch.bfloat16
    assert second.isfinite().all()


@pytest.mark.parametrize("needed", NEEDED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [(1, 0, 1), (3, 1, 1), (3, 0, 1), (3, 1, 2)])
def test_b2_convolution(needed, layout, kernel):
    side, padding, stride = kernel
    conv = nn.Conv3d(3, 2, side, padding=padding, stride=stride)
    values = [
        drawn(1, 3, 4, 5, 4).to(memory_format=layout),
        drawn(2, 3, *[side] * 3, seed=1).to(memory_format=layout),
        drawn(2, seed=2),
    ]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        del conv.weight, conv.bias
        conv.weight, conv.bias = weight, bias  # type: ignore[assignment]
        return native_conv.convolve(conv, x)

    assert_as_torchs(ours, lambda x, w, b: F.conv3d(x, w, b, stride, padding), values, needed)


def test_b2_unasked_gradients_are_not_computed(monkeypatch):
    calls = []
    backward = native_conv._backward
    monkeypatch.setattr(native_conv, "_backward", lambda *args: calls.append(args[-1]) or backward(*args))
    conv = nn.Conv3d(2, 3, 3, padding=1).requires_grad_(False)
    x = drawn(1, 2, 4, 4, 4).requires_grad_()
    native_conv.convolve(conv, x).sum().backward()
    assert x.grad is not None
    assert not calls


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_b2_quantiser_has_the_derivatives_of_the_bounded_value(layout, symmetric):
    quantizer = FiniteScalarQuantizer((8, 6, 5), symmetric=symmetric)
    z = drawn(2, 3, 2, 3, 2).double().to(memory_format=layout)
    shift, scale, width = (
        getattr(quantizer, f"_{n}").double()[..., None, None] for n in ("shift", "scale", "width")
    )

    def derivatives(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x = z.clone(memory_format=torch.preserve_format).requires_grad_()
        (first,) = torch.autograd.grad((function(x) * (z + 1)).sum(), x, create_graph=True)
        return first, torch.autograd.grad(first.pow(3).sum(), x)[0]

    expected = derivatives(lambda x: torch.tanh(x + shift) * scale / width)
    for got, want in zip(derivatives(quantizer.quantize), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_b2_float64_layers_pass_torchs_own_check(layout):
    norm, conv = nn.GroupNorm(2, 4).double(), nn.Conv3d(4, 2, 3, padding=1).double()
    x = drawn(1, 4, 2, 2, 2).double().to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: native_norm.group_norm(x, norm, silu=True), x)
    assert torch.autograd.gradgradcheck(lambda x: native_conv.convolve(conv, x), x)
