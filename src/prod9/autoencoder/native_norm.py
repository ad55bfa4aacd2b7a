"""Group normalisation, with SiLU after it or not, as one operator for channels-last volumes on CPU.

torch's own backward pass has no channels-last kernel: it copies both of its inputs to the other layout and
hands a tensor of that layout to everything before it. Here the backward pass works on blocks of rows that
stay in the cache, and the value between the two operators is computed again instead of being kept, which
saves one activation in three.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK_ELEMENTS = 2**15  # per thread; torch splits no operation on fewer among threads


def group_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
    """Return ``norm(x)``, through SiLU if asked, of ``[B C H W D]`` in its own dtype and memory format."""
    if x.device.type == "cpu" and x.requires_grad and x.is_contiguous(memory_format=torch.channels_last_3d):
        return _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y, inplace=not y.requires_grad) if silu else y


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool
    ) -> Tensor:
        B, C = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(x, weight, bias, B, C, x[0, 0].numel(), num_groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.num_groups, ctx.eps, ctx.silu = num_groups, eps, silu
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: let autograd differentiate its own formula
            y = F.group_norm(x, ctx.num_groups, weight, bias, ctx.eps)
            y = F.silu(y) if ctx.silu else y
            return (*torch.autograd.grad(y, (x, weight, bias), grads[0], create_graph=True), *[None] * 3)
        grad = grads[0].contiguous(memory_format=torch.channels_last_3d)
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for b in range(len(x)):
            rows = _Rows(_rows(grad[b]), _rows(x[b]), _rows(grad_x[b]))
            dw, db = _backward_sample(rows, weight, bias, mean[b], rstd[b], ctx.silu)
            grad_weight += dw
            grad_bias += db
        return (grad_x, grad_weight, grad_bias, *[None] * 3)


class _Rows(NamedTuple):
    """One sample's gradient, input and gradient to fill, all ``[L C]``."""

    grad: Tensor
    x: Tensor
    out: Tensor


def _rows(x: Tensor) -> Tensor:
    """View a channels-last ``[C H W D]`` as rows of channels, ``[L C]``."""
    return x.permute(1, 2, 3, 0).flatten(0, 2)


def _backward_sample(
    rows: _Rows, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """Fill ``rows.out`` and return the gradients of weight and bias, for one sample.

    With y = a·x + shift, where a = rstd·weight, and dy the gradient of y, the gradient of x is
    a·dy + p·x + q; p and q carry what flows back through the mean and the deviation of each group.
    """
    L, C = rows.x.shape
    per_group = C // len(mean)
    weight, mean, rstd = weight.float(), mean.float(), rstd.float()
    mean_c, rstd_c = mean.repeat_interleave(per_group), rstd.repeat_interleave(per_group)
    a = rstd_c * weight
    shift = bias.float() - mean_c * a
    step = max(1, _BLOCK_ELEMENTS * max(2, torch.get_num_threads()) // C)
    blocks = [_Rows(*block) for block in zip(*(r.split(step) for r in rows), strict=True)]
    ones = torch.ones(min(step, L))
    sum_dy, sum_dyx = torch.zeros_like(a), torch.zeros_like(a)
    for block in blocks:
        x, dy = block.x.float(), block.grad.float()
        scratch = torch.addcmul(shift, x, a)
        if silu:
            dy = torch.ops.aten.silu_backward(dy, scratch)
        one = ones[: len(x)]
        sum_dy += one @ dy
        sum_dyx += one @ torch.mul(dy, x, out=scratch)
        block.out.copy_(dy)
    group_dy, group_dyx = ((s * weight).view(-1, per_group).sum(1) for s in (sum_dy, sum_dyx))
    size = L * per_group
    p = (group_dy * mean - group_dyx) * rstd**3 / size
    q = -p * mean - group_dy * rstd / size
    p_c, q_c = p.repeat_interleave(per_group), q.repeat_interleave(per_group)
    for block in blocks:
        rest = torch.addcmul(q_c, block.x.float(), p_c)
        block.out.copy_(rest.addcmul_(block.out.float(), a))
    return (sum_dyx - mean_c * sum_dy) * rstd_c, sum_dy
