"""3D convolutions in slabs: to reach torch's fast kernels, and to save memory without changing the result."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# torch sends a float32 batch of one with C·H·W up to this through im2col, two to five times slower than the
# oneDNN kernel that a batch of two gets.
_IM2COL_LIMIT = 20480


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return ``conv(x)``; small CPU volumes go as a batch of their two halves, which is faster.

    A pointwise convolution is a matrix product over channels-last rows, which keeps that format.
    """
    if x.is_contiguous(memory_format=torch.channels_last_3d) and _is_pointwise(conv):
        return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
    if not _takes_im2col(conv, x):
        return conv(x)
    planes = _output_planes(conv, x, 2)
    half = -(-planes // 2)
    x = _pad(x, conv.padding, 2)
    batch = torch.cat([_slab(conv, x, 2, start, half) for start in (0, planes - half)])
    y = _convolve_padded(conv, batch, 2)
    # With an odd number of planes the halves share one.
    return torch.cat([y[:1], y[1:, :, 2 * half - planes :]], 2)


def convolve_in_slabs(conv: nn.Conv3d, x: Tensor, num_slabs: int, axis: int) -> Tensor:
    """Return ``conv(x)`` computed in up to ``num_slabs`` slabs along ``axis`` (0, 1 or 2), one after another."""
    dim = axis + 2
    planes = _output_planes(conv, x, dim)
    size = -(-planes // num_slabs)
    x = _pad(x, conv.padding, dim)
    starts = range(0, planes, size)
    slabs = (_slab(conv, x, dim, start, min(size, planes - start)) for start in starts)
    return torch.cat([_convolve_padded(conv, slab, dim) for slab in slabs], dim)


def _is_pointwise(conv: nn.Conv3d) -> bool:
    return conv.kernel_size == (1, 1, 1) and conv.stride == (1, 1, 1) and conv.padding == (0, 0, 0)


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
        raise ValueError(f"padding must be given in voxels, got {padding!r}.")
    return padding
