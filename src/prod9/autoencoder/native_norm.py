"""Group normalisation followed by SiLU as one differentiable operator for channels-last volumes on CPU.

torch's own backward pass has no channels-last kernel: it copies both of its inputs to the other layout and
hands a tensor of that layout to everything before it. Here the backward pass works on blocks of rows that
stay in the cache, and the value between the two operators is computed again instead of being kept, which
saves one activation in three.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ELEMENTS = 2**15  # per thread; torch splits no operation on fewer among threads


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
    """Return silu(group_norm(x)) of ``[B C H W D]`` in the dtype and memory format of ``x``."""
    if x.device.type == "cpu" and x.requires_grad and x.is_contiguous(memory_format=torch.channels_last_3d):
        return _GroupNormSiLU.apply(x, weight, bias, num_groups, eps)
    y = F.group_norm(x, num_groups, weight, bias, eps)
    return F.silu(y, inplace=not y.requires_grad)


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        B, C = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(x, weight, bias, B, C, x[0, 0].numel(), num_groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.num_groups, ctx.eps = num_groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: let autograd differentiate its own formula
            y = F.silu(F.group_norm(x, ctx.num_groups, weight, bias, ctx.eps))
            return (*torch.autograd.grad(y, (x, weight, bias), grads[0], create_graph=True), None, None)
        grad = grads[0].contiguous(memory_format=torch.channels_last_3d)
        grad_x = torch.empty_like(x)
        sums = [
            _backward_sample(_rows(grad[b]), _rows(x[b]), _rows(grad_x[b]), weight, bias, mean[b], rstd[b])
            for b in range(len(x))
        ]
        return (
            grad_x,
            *(torch.stack(s).sum(0).to(weight.dtype) for s in zip(*sums, strict=True)),
            None,
            None,
        )


def _rows(x: Tensor) -> Tensor:
    """View a channels-last ``[C H W D]`` as rows of channels, ``[L C]``."""
    return x.permute(1, 2, 3, 0).flatten(0, 2)


def _backward_sample(
    grad: Tensor, x: Tensor, grad_x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill ``grad_x`` and return the gradients of weight and bias, for one sample; all rows are ``[L C]``.

    With y = a·x + shift, where a = rstd·weight, and dy = silu'(y)·grad, the gradient is
    dx = a·dy + p·x + q; p and q carry what flows back through the mean and the deviation of each group.
    """
    L, C = x.shape
    per_group = C // len(mean)
    mean_c, rstd_c = (s.float().repeat_interleave(per_group) for s in (mean, rstd))
    a = rstd_c * weight.float()
    shift = bias.float() - mean_c * a
    step = max(1, _BLOCK_ELEMENTS * max(2, torch.get_num_threads()) // C)
    blocks = list(zip(x.split(step), grad.split(step), grad_x.split(step), strict=True))
    sum_dy, sum_dyx = torch.zeros_like(a), torch.zeros_like(a)
    for x_rows, grad_rows, out in blocks:
        x32 = x_rows.float()
        y = torch.addcmul(shift, x32, a)
        dy = torch.ops.aten.silu_backward(grad_rows.float(), y)
        sum_dy += dy.sum(0)
        sum_dyx += torch.mul(dy, x32, out=y).sum(0)
        out.copy_(dy)
    group_dy, group_dyx = ((s * weight).view(-1, per_group).sum(1) for s in (sum_dy, sum_dyx))
    size = L * per_group
    p = (group_dy * mean - group_dyx) * rstd**3 / size
    q = -p * mean - group_dy * rstd / size
    p_c, q_c = p.repeat_interleave(per_group), q.repeat_interleave(per_group)
    for x_rows, _, out in blocks:
        out.copy_(torch.addcmul(q_c, x_rows.float(), p_c).addcmul_(out.float(), a))
    return (sum_dyx - mean_c * sum_dy) * rstd_c, sum_dy
