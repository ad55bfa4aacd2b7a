"""Group normalisation, perhaps followed by SiLU, as one operator for channels-last volumes on CPUs.

torch's channels-last kernel subtracts two large sums of squares: an error of 1e-4 where the mean is ten deviations from
0, as it may be in a trained network, and of 1e-5 at 64³ elsewhere. Small volumes are centred on a guess of their mean
and passed to that kernel, since its few calls cost least there. Large ones are processed in blocks of rows that stay in
the cache, with statistics merged in float64. Both recompute the value between norm and SiLU in the backward pass, which
saves one activation in three.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prod9.autoencoder.native.layout import needs_grad

_BLOCK_ELEMENTS = 2**16  # per thread: 256 kB; torch uses one thread for less than half of it
_SMALL = 2**15  # voxels: up to 32³, blocks take twice as long, and sums in float32 are exact to 1e-6


def group_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool, reuse: bool = False) -> Tensor:
    """Return ``norm(x)`` of ``[B C H W D]``, in the dtype and memory format of ``x``.

    Args:
        x: the volumes.
        norm: the layer whose parameters are used.
        silu: apply SiLU to the result.
        reuse: allow the result to overwrite ``x``; allocating a large volume takes longer than the norm.

    Compiled code uses torch's own operators, which compilers optimise.
    """
    if _takes_own_kernels(x, norm):
        operator = _CentredGroupNorm if x.shape[2:].numel() <= _SMALL else _GroupNorm
        if reuse and operator is _GroupNorm and not needs_grad(x, norm.weight, norm.bias):
            _normalise(x, x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
            return x
        return operator.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if silu:
        y = F.silu(y, inplace=not y.requires_grad)
    return y.to(x.dtype)  # under autocast group normalisation gives float32


def _takes_own_kernels(x: Tensor, norm: nn.GroupNorm) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype != torch.float64
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and x.numel() > 0
        and norm.weight is not None
        and norm.bias is not None
    )


class _CentredGroupNorm(torch.autograd.Function):
    """torch's kernel on centred values; subtracting a constant per group changes neither result nor gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool
    ) -> Tensor:
        """Normalise ``x``, and keep it with its moments for the backward pass."""
        guess = x[..., ::4, ::4, ::4].float().mean((2, 3, 4)).unflatten(1, (num_groups, -1)).mean(2)
        guess = _per_channel(guess, x.shape[1])
        sizes = (*x.shape[:2], x[0, 0].numel(), num_groups)
        y, mean, rstd = torch.ops.aten.native_group_norm(
            x.float() - guess, weight.float(), bias.float(), *sizes, eps
        )
        ctx.save_for_backward(x, weight, bias, guess, mean, rstd)
        ctx.num_groups, ctx.eps, ctx.silu = num_groups, eps, silu
        return (F.silu(y, inplace=True) if silu else y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, weight and bias."""
        x, weight, bias, guess, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, (x, weight, bias), grads[0])
        channels, factor = x.shape[1], weight.float()
        centred = x.float() - guess
        grad = grads[0].contiguous(memory_format=torch.channels_last_3d).float()
        if ctx.silu:
            scale = _per_channel(rstd, channels) * factor.view(-1, 1, 1, 1)
            shift = bias.float().view(-1, 1, 1, 1) - _per_channel(mean, channels) * scale
            grad = torch.ops.aten.silu_backward(grad, torch.addcmul(shift, centred, scale))
        sizes = (*x.shape[:2], x[0, 0].numel(), ctx.num_groups)
        gradients = torch.ops.aten.native_group_norm_backward(
            grad, centred, mean, rstd, factor, *sizes, list(ctx.needs_input_grad[:3])
        )
        pairs = zip(gradients, (x, weight, bias), strict=True)
        return (*(None if g is None else g.to(like.dtype) for g, like in pairs), *[None] * 3)


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """Repeat one value per group, ``[B G]``, for each of its channels: ``[B C 1 1 1]``."""
    return values.repeat_interleave(channels // values.shape[1], 1)[..., None, None, None]


def _differentiable_backward(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients that autograd can differentiate again, of the inputs that need one."""
    x, weight, bias = inputs
    y = F.group_norm(x.float(), ctx.num_groups, weight.float(), bias.float(), ctx.eps)
    y = (F.silu(y) if ctx.silu else y).to(x.dtype)
    needed = [value for value, wanted in zip(inputs, ctx.needs_input_grad, strict=False) if wanted]
    found = iter(torch.autograd.grad(y, needed, grad, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in ctx.needs_input_grad)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool
    ) -> Tensor:
        """Normalise ``x``, and keep it with its moments for the backward pass."""
        out = torch.empty_like(x)
        moments = _normalise(x, out, weight, bias, num_groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, *(value for m in moments for value in m))
        ctx.num_groups, ctx.eps, ctx.silu = num_groups, eps, silu
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, weight and bias."""
        x, weight, bias, *values = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, (x, weight, bias), grads[0])
        grad = grads[0].contiguous(memory_format=torch.channels_last_3d)
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for b in range(len(x)):
            rows = _Rows(_rows(grad[b]), _rows(x[b]), _rows(grad_x[b]))
            m = _Moments(values[2 * b], values[2 * b + 1])
            dw, db = _backward_sample(rows, weight, bias, m, ctx.num_groups, ctx.silu)
            grad_weight += dw
            grad_bias += db
        return (grad_x, grad_weight, grad_bias, *[None] * 3)


class _Moments(NamedTuple):
    """Mean and 1/deviation of one sample's groups, repeated for each channel: float32 ``[C]``."""

    mean: Tensor
    rstd: Tensor

    def affine(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return (shift, scale) such that the normalised value is x · scale + shift."""
        scale = self.rstd * weight.float()
        return bias.float() - self.mean * scale, scale


def _normalise(
    x: Tensor, out: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool
) -> list[_Moments]:
    """Fill ``out``, which may be ``x``, and return the moments of each sample of ``x``."""
    moments = [_moments(_rows(sample), num_groups, eps) for sample in x]
    for sample, filled, m in zip(x, out, moments, strict=True):
        _apply(_rows(sample), _rows(filled), m.affine(weight, bias), silu)
    return moments


class _Rows(NamedTuple):
    """One sample's gradient, input and gradient to fill, all ``[L C]``."""

    grad: Tensor
    x: Tensor
    out: Tensor


def _rows(x: Tensor) -> Tensor:
    """View a channels-last ``[C H W D]`` as rows of channels, ``[L C]``."""
    return x.permute(1, 2, 3, 0).flatten(0, 2)


def _block_rows(channels: int) -> int:
    return max(1, _BLOCK_ELEMENTS * max(2, torch.get_num_threads()) // channels)


def _moments(x: Tensor, num_groups: int, eps: float) -> _Moments:
    """Return the moments of ``[L C]``, from sums around a first guess of the mean."""
    L, C = x.shape
    step = _block_rows(C)
    guess = x[:step].float().mean(0)
    total, square = torch.zeros(2, C, dtype=torch.float64)
    for block in x.split(step):
        centred = block - guess
        total += centred.sum(0)
        square += centred.square_().sum(0)
    mean = guess + total / L
    spread = square / L - (total / L) ** 2
    mean_g = mean.view(num_groups, -1).mean(1, keepdim=True)
    var_g = (spread.view(num_groups, -1) + (mean.view(num_groups, -1) - mean_g) ** 2).mean(1, keepdim=True)
    groups = torch.stack([mean_g, (var_g + eps).rsqrt()]).float()
    return _Moments(*groups.expand(2, num_groups, C // num_groups).flatten(1))


def _apply(x: Tensor, out: Tensor, affine: tuple[Tensor, Tensor], silu: bool) -> None:
    shift, scale = affine
    step = _block_rows(x.shape[1])
    for block, filled in zip(x.split(step), out.split(step), strict=True):
        y = torch.addcmul(shift, block.float(), scale)
        if silu and filled.dtype == y.dtype:
            torch.ops.aten.silu.out(y, out=filled)
        else:
            filled.copy_(F.silu(y, inplace=True) if silu else y)


def _backward_sample(
    rows: _Rows, weight: Tensor, bias: Tensor, moments: _Moments, num_groups: int, silu: bool
) -> tuple[Tensor, Tensor]:
    """Fill ``rows.out`` and return the gradients of weight and bias, for one sample.

    With y = x·scale + shift and dy the gradient of y, the gradient of x is dy·scale + x·p + q; p and q
    carry what flows back through the mean and the deviation of each group.
    """
    L, C = rows.x.shape
    mean, rstd = moments
    shift, scale = moments.affine(weight, bias)
    step = _block_rows(C)
    blocks = [_Rows(*block) for block in zip(*(r.split(step) for r in rows), strict=True)]
    sum_dy, sum_dyx = torch.zeros(2, C, dtype=torch.float64)
    for block in blocks:
        x, dy = block.x.float(), block.grad.float()
        scratch = torch.addcmul(shift, x, scale)
        if silu:
            dy = torch.ops.aten.silu_backward(dy, scratch)
        sum_dy += dy.sum(0)
        sum_dyx += torch.mul(dy, x, out=scratch).sum(0)
        block.out.copy_(dy)
    grad_weight = (sum_dyx - mean * sum_dy) * rstd  # Σ dy · normalised x
    # Means over each group of what reaches the normalised value, and of that times the value.
    flow = torch.stack([sum_dy, grad_weight]) * weight / (L * C // num_groups)
    first, second = flow.view(2, num_groups, -1).sum(2).repeat_interleave(C // num_groups, 1)
    p = -(second * rstd**2).float()
    q = -(first * rstd).float() - p * mean
    for block in blocks:
        rest = torch.addcmul(q, block.x.float(), p)
        block.out.copy_(rest.addcmul_(block.out.float(), scale))
    return grad_weight.to(weight.dtype), sum_dy.to(bias.dtype)
