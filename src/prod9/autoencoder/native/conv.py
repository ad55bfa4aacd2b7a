"""3D convolutions by the fastest kernels for their shape, and in slabs, which save memory."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prod9.autoencoder.native import winograd as native_winograd

# torch sends a float32 batch of one with C·H·W up to this through im2col, two to five times slower than the
# oneDNN kernel that a batch of two gets.
_IM2COL_LIMIT = 20480


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return ``conv(x)``, in the memory format of ``x``, by the fastest kernels for its shape.

    In channels-last memory a pointwise convolution is a matrix product over rows. Compiled code uses torch's own
    operator, which compilers optimise.
    """
    if torch.compiler.is_compiling() or not _is_plain(conv):
        return conv(x)
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        if conv.kernel_size == conv.stride == (1, 1, 1) and conv.padding == (0, 0, 0):
            return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
        if _is_same(conv) and native_winograd.pays(x, conv.weight, conv.bias):
            return native_winograd.convolve_planes(x, conv.weight, conv.bias, padding=1)
    if not _takes_im2col(conv, x):
        return conv(x)
    if conv.stride == (1, 1, 1):
        return _SmallConvolution.apply(x, conv.weight, conv.bias, _sides(conv.padding))
    return _halves(conv, x)


class _SmallConvolution(torch.autograd.Function):
    """A convolution of stride 1 that calls oneDNN where torch would choose im2col."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
        """Return the convolution, and keep input and weight for the backward pass."""
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.bias_sizes = list(padding), None if bias is None else [len(bias)]
        return _onednn(x, weight, bias, ctx.padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grads[0]
        needed = [*ctx.needs_input_grad[:2], ctx.needs_input_grad[2] and ctx.bias_sizes is not None]
        if torch.is_grad_enabled():  # create_graph=True: the operator that autograd can differentiate
            return (*_backward(grad, x, weight, ctx.bias_sizes, ctx.padding, needed), None)
        grad = grad.contiguous(memory_format=_dense_format(x))
        grad_x = None
        if needed[0]:
            mirrored = weight.flip(2, 3, 4).transpose(0, 1).contiguous(memory_format=_dense_format(weight))
            around = [k - 1 - p for k, p in zip(weight.shape[2:], ctx.padding, strict=True)]
            grad_x = _onednn(grad, mirrored, None, around)
        if not any(needed[1:]):
            return grad_x, None, None, None
        # The gradient of the weight is a sum over voxels: a batch of two halves has the same.
        planes, kernel = grad.shape[2], weight.shape[2]
        padded = F.pad(x, (0, 0, 0, 0, ctx.padding[0], ctx.padding[0] + planes % 2))
        grad = F.pad(grad, (0, 0, 0, 0, 0, planes % 2))
        half = grad.shape[2] // 2
        pairs = torch.cat([padded[:, :, s : s + half + kernel - 1] for s in (0, half)])
        gradients = torch.cat([grad[:, :, s : s + half] for s in (0, half)])
        _, grad_weight, grad_bias = _backward(
            gradients, pairs, weight, ctx.bias_sizes, [0, *ctx.padding[1:]], [False, *needed[1:]]
        )
        return grad_x, grad_weight, grad_bias, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, [1, 1, 1], [1, 1, 1], 1)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: list[int] | None, padding: list[int], needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    ones = [1, 1, 1]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, bias, ones, padding, ones, False, [0, 0, 0], 1, needed
    )


def _dense_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _halves(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return ``conv(x)`` of a batch of one as that of its two halves: torch uses oneDNN for a batch of two."""
    planes = _output_planes(conv, x, 2)
    half = -(-planes // 2)
    x = _pad(x, conv.padding, 2)
    y = _convolve_padded(conv, torch.cat([_slab(conv, x, 2, s, half) for s in (0, planes - half)]), 2)
    # With an odd number of planes the halves share one.
    return torch.cat([y[:1], y[1:, :, 2 * half - planes :]], 2)


def convolve_slab(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return ``conv`` of planes that are already padded along the first axis, by the kernels of `convolve`."""
    padding = [0, *_sides(conv.padding)[1:]]
    if _is_same(conv) and native_winograd.pays(x, conv.weight, conv.bias):
        return native_winograd.convolve_planes(x, conv.weight, conv.bias, padding=0)
    if conv.stride == (1, 1, 1) and _takes_im2col(conv, x):
        return _onednn(x, conv.weight, conv.bias, padding)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)


def convolve_in_slabs(conv: nn.Conv3d, x: Tensor, num_slabs: int, axis: int) -> Tensor:
    """Return ``conv(x)`` computed in up to ``num_slabs`` slabs along ``axis``, one after another.

    Args:
        conv: of stride 1.
        x: ``[B C H W D]``.
        num_slabs: the most slabs.
        axis: 0, 1 or 2: H, W or D.
    """
    dim = axis + 2
    planes = _output_planes(conv, x, dim)
    size = -(-planes // num_slabs)
    x = _pad(x, conv.padding, dim)
    starts = range(0, planes, size)
    slabs = (_slab(conv, x, dim, start, min(size, planes - start)) for start in starts)
    return torch.cat([_convolve_padded(conv, slab, dim) for slab in slabs], dim)


def _is_plain(conv: nn.Conv3d) -> bool:
    """Return whether ``conv`` has neither groups nor dilation, and zero padding given as numbers."""
    return (
        conv.groups == 1
        and conv.dilation == (1, 1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def _is_same(conv: nn.Conv3d) -> bool:
    """Return whether ``conv`` has stride 1 and padding 1, which keep the sides under a 3×3×3 kernel."""
    return conv.stride == (1, 1, 1) and tuple(_sides(conv.padding)) == (1, 1, 1)


def _takes_im2col(conv: nn.Conv3d, x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and x.shape[:4].numel() <= _IM2COL_LIMIT
        and x.shape[0] == 1
        and conv.kernel_size[0] > 1
        and _output_planes(conv, x, 2) > 1
    )


def _output_planes(conv: nn.Conv3d, x: Tensor, dim: int) -> int:
    axis = dim - 2
    padded = x.shape[dim] + 2 * _sides(conv.padding)[axis]
    return (padded - conv.kernel_size[axis]) // conv.stride[axis] + 1


def _pad(x: Tensor, padding: Sequence[int] | str, dim: int) -> Tensor:
    """Zero-pad both ends of ``dim`` as the convolution would."""
    width = _sides(padding)[dim - 2]
    return F.pad(x, (0, 0) * (4 - dim) + (width, width)) if width else x


def _slab(conv: nn.Conv3d, x: Tensor, dim: int, start: int, count: int) -> Tensor:
    """Return the input planes of output planes ``start`` to ``start + count`` of a padded volume."""
    stride, kernel = conv.stride[dim - 2], conv.kernel_size[dim - 2]
    return x.narrow(dim, start * stride, (count - 1) * stride + kernel)


def _convolve_padded(conv: nn.Conv3d, x: Tensor, dim: int) -> Tensor:
    padding = list(_sides(conv.padding))
    padding[dim - 2] = 0
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)


def _sides(padding: Sequence[int] | str) -> Sequence[int]:
    if isinstance(padding, str):
        raise ValueError(f"padding: expected numbers of voxels, got {padding!r}; give one number per axis")
    return padding
