"""Pad volumes to sides that a network takes, and crop its output back."""

from collections.abc import Sequence

import torch.nn.functional as F

from prod9.types import Volume, VolumeOut


def padded_sides(sides: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return the smallest multiples of ``multiple`` that are not below ``sides``."""
    return tuple(-(-side // multiple) * multiple for side in sides)


def pad_to_multiple(x: Volume, multiple: int) -> VolumeOut:
    """Append background (0) behind the last voxels of each axis until its side is a multiple of ``multiple``."""
    sides = x.shape[2:]
    H, W, D = (new - old for new, old in zip(padded_sides(sides, multiple), sides, strict=True))
    return F.pad(x, (0, D, 0, W, 0, H)) if H or W or D else x


def crop(x: Volume, sides: Sequence[int]) -> VolumeOut:
    """Undo `pad_to_multiple`: keep the first ``sides`` voxels of each axis."""
    H, W, D = sides
    return x[:, :, :H, :W, :D]
