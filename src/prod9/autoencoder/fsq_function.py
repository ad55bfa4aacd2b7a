"""The differentiable core of finite scalar quantisation, as one autograd function.

Left to autograd, quantisation keeps every intermediate of the latent; here the forward pass keeps one
tensor (the tanh) and the backward pass reads it once.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class FSQConstants(NamedTuple):
    """Per-channel constants, shape ``[1 Z 1 1 1]``: level = round(tanh(z + shift) · scale + offset) − centre.

    ``width`` is the number of levels from zero to a code of −1; code = level / width.
    """

    shift: Tensor
    scale: Tensor
    offset: Tensor
    centre: Tensor
    width: Tensor


def bound_and_round(z: Tensor, constants: FSQConstants, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return ``(tanh(z + shift), level)``, the level counted from the middle of the range.

    ``symmetric`` rounds ties up and subtracts the centre afterwards, since its middle may be half a level.
    """
    t = (z + constants.shift).tanh_()
    level = torch.addcmul(constants.offset, t, constants.scale)
    if symmetric:
        return t, level.add_(0.5).floor_().sub_(constants.centre)
    return t, level.round_()


class StraightThrough(torch.autograd.Function):
    """Quantise with the gradient of the bounded value: rounding counts as the identity.

    d code / d z = (1 − tanh²(z + shift)) · scale / width.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, symmetric: bool, *constants: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(codes, levels)``; levels carry no gradient."""
        c = FSQConstants(*constants)
        t, level = bound_and_round(z, c, symmetric)
        ctx.save_for_backward(z, t, c.shift, c.scale / c.width)
        ctx.mark_non_differentiable(level)
        return level / c.width, level

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient for ``z`` alone; all else is a constant of the quantiser."""
        z, t, shift, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph=True: the saved tanh is cut off from z, so it is computed again from z itself.
            t = torch.tanh(z + shift)
            return (grads[0] * (1 - t * t) * slope, *[None] * 6)
        return (torch.ops.aten.tanh_backward(grads[0], t).mul_(slope), *[None] * 6)
