"""Space to depth and back for volumes, without parameters: as voxels, or as bands of a Haar transform.

The Haar transform is orthonormal: it keeps energy, and its inverse is its transpose. It equals folding times a fixed
orthogonal matrix. Sums and differences compute it, which neither autocast nor TF32 rounds: a detail is a small
difference of large values.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prod9.types import Volume, VolumeOut


def fold_voxels(x: Volume, n: int) -> VolumeOut:
    """Move n³ neighbouring voxels into channels: ``[B C H W D]`` → ``[B C·n³ H/n W/n D/n]``."""
    if n == 1:
        return x
    B, C, H, W, D = x.shape
    x = x.reshape(B, C, H // n, n, W // n, n, D // n, n).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(B, C * n**3, H // n, W // n, D // n)


def unfold_voxels(x: Volume, n: int) -> VolumeOut:
    """Undo `fold_voxels`."""
    if n == 1:
        return x
    B, C, h, w, d = x.shape
    x = x.reshape(B, C // n**3, n, n, n, h, w, d).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(B, C // n**3, h * n, w * n, d * n)


def fold_bands(x: Volume, n: int) -> VolumeOut:
    """Return the Haar bands of blocks of n³ voxels: ``[B C H W D]`` → ``[B C·n³ H/n W/n D/n]``, n a power of 2.

    Of each channel, first the low band, √(n³) times the mean of a block, then the details from coarse to fine. Those of
    level l are folded by n/2ˡ. Mallat 1989, "A theory for multiresolution signal decomposition".
    """
    if n == 1:
        return x
    C = x.shape[1]
    bands = _sums_and_differences(fold_voxels(x, 2).unflatten(1, (C, 8)))
    low = fold_bands(bands[:, :, 0], n // 2).unflatten(1, (C, -1))
    details = fold_voxels(bands[:, :, 1:].flatten(1, 2), n // 2).unflatten(1, (C, -1))
    return torch.cat((low, details), 2).flatten(1, 2)


def unfold_bands(x: Volume, n: int) -> VolumeOut:
    """Undo `fold_bands`."""
    if n == 1:
        return x
    C = x.shape[1] // n**3
    bands, rest = x.unflatten(1, (C, n**3)), (n // 2) ** 3
    low = unfold_bands(bands[:, :, :rest].flatten(1, 2), n // 2).unflatten(1, (C, 1))
    details = unfold_voxels(bands[:, :, rest:].flatten(1, 2), n // 2).unflatten(1, (C, 7))
    return unfold_voxels(_sums_and_differences(torch.cat((low, details), 2)).flatten(1, 2), 2)


def _sums_and_differences(x: Tensor) -> Tensor:
    """Return the Haar transform of pairs along each axis of 2×2×2 voxels ``[B C 8 h w d]``; its own inverse."""
    x = x.unflatten(2, (2, 2, 2))
    for axis in (2, 3, 4):
        first, second = x.unbind(axis)
        x = torch.stack((first + second, first - second), axis)
    return x.flatten(2, 4) * 8**-0.5


class FrontEnd(NamedTuple):
    """How a network reads blocks of voxels as channels, ``fold(x, n)``, and writes them, ``unfold(x, n)``."""

    fold: Callable[[Tensor, int], Tensor]
    unfold: Callable[[Tensor, int], Tensor]


FRONT_ENDS = {"fold": FrontEnd(fold_voxels, unfold_voxels), "haar": FrontEnd(fold_bands, unfold_bands)}
"""By ``front_end`` of a configuration."""
