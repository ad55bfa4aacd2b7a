"""The arithmetic of finite scalar quantisation, as one autograd function.

Autograd alone would keep several copies of the latent and make a dozen passes over memory. Here the computation runs
over blocks that stay in the cache and computes the derivative along with tanh: one more copy of a latent, which is
small compared to activations, and the backward pass is a product.
"""

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 32768  # voxels per thread; with five channels 650 kB per tensor, two of which exist at a time
_EXACT_IN_FLOAT32 = 2**22  # half-integers too


class FSQConstants(NamedTuple):
    """Per-channel constants, ``[1 Z 1]``: level = round(tanh(z + shift) · scale + offset) − centre.

    ``width`` is the number of levels from zero to a code of 1; code = level / width.
    """

    shift: Tensor
    scale: Tensor
    offset: Tensor
    centre: Tensor
    width: Tensor


class Radix(NamedTuple):
    """How levels, counted from the middle, pack into an index: Σ stride · (level + zero)."""

    strides: tuple[int, ...]
    zeros: tuple[float, ...]
    vocab_size: int

    def pack(self, level: Tensor) -> Tensor:
        """Return the index of ``[B Z L]`` levels: float32 where that is exact, which is faster, else int64."""
        pairs = list(zip(self.zeros, self.strides, strict=True))
        if self.vocab_size > _EXACT_IN_FLOAT32:
            return torch.stack([(level[:, i] + zero).long() * s for i, (zero, s) in enumerate(pairs)]).sum(0)
        index = level[:, 0] + sum(zero * stride for zero, stride in pairs)
        for i, stride in enumerate(self.strides[1:], start=1):
            index.add_(level[:, i], alpha=stride)
        return index


def quantize(z: Tensor, symmetric: bool, radix: Radix, constants: FSQConstants) -> tuple[Tensor, Tensor]:
    """Return ``(codes, tokens)`` of ``z``; the gradient of rounding is 1.

    Compiled code uses the plain formula: compilers fuse it, and cannot see into the function below.

    Args:
        z: ``[B Z h w d]`` of any strides.
        symmetric: whether levels lie on both sides of 0 alike.
        radix: what each level counts in a token.
        constants: of the levels.
    """
    if not torch.compiler.is_compiling():
        return StraightThrough.apply(z, symmetric, tuple(radix), *constants)
    flat = z.flatten(2)
    bounded = torch.tanh(flat + constants.shift) * constants.scale + constants.offset
    level = torch.floor(bounded + 0.5) - constants.centre if symmetric else torch.round(bounded)
    code = ((bounded - constants.centre) if symmetric else bounded) / constants.width
    # The value of the level, the gradient of what was rounded.
    code = code + (level / constants.width - code).detach()
    return code.view(z.shape), radix.pack(level.detach()).long().view(z.shape[:1] + z.shape[2:])


class StraightThrough(torch.autograd.Function):
    """Quantise ``[B Z h w d]`` with the gradient of the bounded value: the gradient of rounding is 1.

    d code / d z = (1 − tanh²(z + shift)) · scale / width.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, symmetric: bool, radix: tuple[Any, ...], *constants: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``(codes, tokens)``; tokens carry no gradient.

        Args:
            ctx: what the backward pass needs.
            z: ``[B Z h w d]``.
            symmetric: as for :func:`quantize`.
            radix: as for :func:`quantize`.
            constants: of the levels, one tensor each.
        """
        c = FSQConstants(*constants)
        given, z = z, _viewable(z)
        codes = torch.empty_like(z)
        tokens = torch.empty(z.shape[:1] + z.shape[2:], dtype=torch.int64, device=z.device)
        slope = c.scale / c.width
        derivative = torch.empty_like(z) if ctx.needs_input_grad[0] else z[:0]
        slopes = _blocks(derivative, 2) if ctx.needs_input_grad[0] else [None] * len(_blocks(z, 2))
        for source, code, token, kept in zip(
            _blocks(z, 2), _blocks(codes, 2), _blocks(tokens, 1), slopes, strict=True
        ):
            # Not addcmul: it doesn't vectorise over constants that broadcast along the voxels.
            bounded = (source + c.shift).tanh_()
            if kept is not None:
                torch.ops.aten.tanh_backward.grad_input(slope, bounded, grad_input=kept)
            level = bounded.mul_(c.scale).add_(c.offset)
            if symmetric:  # ties up, and the middle may be half a level
                level.add_(0.5).floor_().sub_(c.centre)
            else:
                level.round_()
            token.copy_(Radix(*radix).pack(level))
            torch.div(level, c.width, out=code)
        ctx.save_for_backward(given, derivative, c.shift, slope)
        ctx.mark_non_differentiable(tokens)
        return codes, tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``z``; the other inputs are constants."""
        z, derivative, shift, slope = ctx.saved_tensors
        rest = [None] * 7
        if torch.is_grad_enabled():  # create_graph=True: out of place, so that it can be differentiated again
            t = torch.tanh(z + shift.unsqueeze(-1).unsqueeze(-1))
            return (grads[0] * (1 - t * t) * slope.unsqueeze(-1).unsqueeze(-1), *rest)
        return (grads[0] * derivative, *rest)


def _viewable(x: Tensor) -> Tensor:
    """Return ``x`` ``[B Z h w d]``, or a copy, in a memory layout in which its voxels form one axis.

    Blocks are filled through views, and `empty_like` would keep strides that cannot be flattened without a copy.
    """
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.contiguous()


def _blocks(x: Tensor, first_side: int) -> tuple[Tensor, ...]:
    """Split the voxels, flattened into one axis, into blocks that fit the cache; all are views of ``x``."""
    flat = x.view(*x.shape[:first_side], prod(x.shape[first_side:]))
    if x.device.type != "cpu":  # other devices want few large launches
        return (flat,)
    return flat.split(_BLOCK * torch.get_num_threads(), first_side)
