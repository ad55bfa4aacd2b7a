"""3×3×3 convolutions with half the multiplications, for inference in float32 on CPUs.

Along the first axis four output planes are computed from six input planes by six products instead of twelve
(Winograd, F(4, 3); Lavin & Gray 2016, "Fast algorithms for convolutional neural networks"), each of which is a
3×3 convolution of a plane by oneDNN. In channels-last memory both transforms are one matrix product of a few rows.
The other two axes stay direct: nested transforms cost what they save until a layer has 256 channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prod9.autoencoder.native.layout import needs_grad

_OUT, _TAPS = 4, 3
_IN = _OUT + _TAPS - 1
# The points of evaluation, beside infinity. Exact in binary, and with half the rounding error of the usual
# 0, ±1, ±2, since their powers are closer to 1.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
# For smaller layers, the transforms and one call per plane cost as much as the products save.
_LEAST_CHANNELS, _LEAST_PLANE = 64, 2**16  # a plane's voxels times its channels


class _Transforms(NamedTuple):
    """output = ``outputs`` · ((``taps`` · kernel) ∘ (``inputs`` · planes)), for four planes of one axis."""

    inputs: Tensor
    taps: Tensor
    outputs: Tensor


def transforms() -> _Transforms:
    """Return the matrices ``[6 6]``, ``[6 3]`` and ``[4 6]``, float64.

    Evaluating polynomials at the points, multiplying there and interpolating convolves their coefficients
    (Toom and Cook); the transpose of that map in one of its two factors is the correlation that layers compute.
    """
    values = torch.tensor(_POINTS, dtype=torch.float64)[:, None] ** torch.arange(_IN)

    def evaluate(terms: int) -> Tensor:
        at_infinity = torch.eye(terms, dtype=torch.float64)[-1:]
        return torch.cat([values[:, :terms], at_infinity])

    return _Transforms(torch.linalg.inv(evaluate(_IN)).T, evaluate(_TAPS), evaluate(_OUT).T)


def pays(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether `convolve_planes` is the fastest way to convolve ``x`` ``[B C H W D]``."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not needs_grad(x, weight, *(() if bias is None else (bias,)))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and weight.shape[2:] == (_TAPS,) * 3
        and x.shape[2] >= _IN
        and (channels := min(weight.shape[:2])) >= _LEAST_CHANNELS
        and x.shape[3:].numel() * channels >= _LEAST_PLANE
    )


def convolve_planes(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Return the 3×3×3 convolution, of stride 1, of float32 ``[B C H W D]``, channels-last. No gradients.

    Args:
        x: float32 ``[B C H W D]``, channels-last.
        weight: ``[O C 3 3 3]``.
        bias: ``[O]``, or None.
        padding: zero planes in front and behind along H, 0 or 1; W and D are always padded by 1.
    """
    matrices = _Transforms(*(matrix.float() for matrix in transforms()))
    kernels = torch.einsum("kh,ochwd->kocwd", matrices.taps, weight)
    kernels = [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]
    # Shares of the bias that add up to it in each of the four planes: oneDNN adds them at no cost.
    shares = torch.linalg.pinv(matrices.outputs).sum(1)
    biases = [None if bias is None else share * bias for share in shares]
    rows = x.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1)
    B, planes, W, D, C = rows.shape
    out = rows.new_empty(B, planes + 2 * padding - _TAPS + 1, W, D, len(weight))
    transformed = rows.new_empty(_IN, W, D, C)
    products = rows.new_empty(_IN, W, D, len(weight))
    for volume, filled in zip(rows, out, strict=True):
        for first in range(0, len(filled), _OUT):
            taken = _planes(volume, first - padding).flatten(1)
            torch.mm(matrices.inputs, taken, out=transformed.view(_IN, -1))
            for k in range(_IN):
                plane = transformed[k].permute(2, 0, 1)[None]
                y = torch.ops.aten.mkldnn_convolution(plane, kernels[k], biases[k], [1, 1], [1, 1], [1, 1], 1)
                products[k] = y[0].permute(1, 2, 0)
            wanted = filled[first : first + _OUT].flatten(1)
            torch.mm(matrices.outputs[: len(wanted)], products.flatten(1), out=wanted)
    return out.permute(0, 4, 1, 2, 3)


def _planes(volume: Tensor, first: int) -> Tensor:
    """Return planes ``first`` to ``first + 6`` of ``[H W D C]``; planes outside of it are 0."""
    last = first + _IN
    if first >= 0 and last <= len(volume):
        return volume[first:last]
    planes = volume.new_zeros(_IN, *volume.shape[1:])
    low, high = max(first, 0), min(last, len(volume))
    planes[low - first : high - first] = volume[low:high]
    return planes
