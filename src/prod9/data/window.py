"""Window: the place of a model's grid in the volume of a file, to cut the grid out and to paste it back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai import transforms as mt
from monai.data.meta_tensor import MetaTensor

from prod9 import volumes
from prod9.volumes import VolumeHeader


def layers_of(data: np.ndarray, affine: np.ndarray) -> MetaTensor:
    """Return ``data [C H W D]`` with its affine as MONAI expects it."""
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(data)), affine=torch.from_numpy(np.array(affine)))


@dataclass(frozen=True, eq=False)
class Frame:
    """The voxels of a file in RAS, at the spacing of a model.

    Attributes:
        shape: voxels ``(H, W, D)``.
        affine: 4×4, voxel to mm.
        file_shape: voxels of the file in RAS before resampling.
        file_affine: the same for the affine.
        resampled: whether the two differ.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    file_shape: tuple[int, ...]
    file_affine: np.ndarray
    resampled: bool

    @classmethod
    def of_file(cls, header: VolumeHeader) -> "Frame":
        """Return the frame of a file whose spacing stays as it is."""
        turned, affine = volumes.to_ras(np.broadcast_to(np.float32(0), header.shape), header.affine)
        return cls(turned.shape, affine, turned.shape, affine, resampled=False)

    def to_file(self, layers: np.ndarray) -> np.ndarray:
        """Return ``layers [C H W D]`` on the voxels of the file in RAS, by linear interpolation."""
        resample = mt.SpatialResample(mode="bilinear", padding_mode="border")
        target = torch.from_numpy(np.array(self.file_affine))
        moved = resample(layers_of(layers, self.affine), dst_affine=target, spatial_size=self.file_shape)
        return np.asarray(moved)


@dataclass(frozen=True, eq=False)
class Window:
    """A box of ``sides`` voxels that begins at voxel ``start`` of ``frame``; it may extend beyond the frame."""

    frame: Frame
    start: tuple[int, ...]
    sides: tuple[int, ...]

    @classmethod
    def around(
        cls, frame: Frame, box: Sequence[slice], grid: Sequence[int], *, multiple_of: int | None = None
    ) -> "Window":
        """Return the window of ``grid`` voxels around the centre of ``box``.

        Args:
            frame: the grid of the volume.
            box: a slice for each axis.
            grid: voxels of the window for each axis.
            multiple_of: grow the window to a multiple of it along axes where the box is larger than the grid.
        """
        start, sides = [], []
        for part, side in zip(box, grid, strict=True):
            extent = part.stop - part.start
            if multiple_of is not None:
                side = max(side, -(-extent // multiple_of) * multiple_of)
            # Centres as in MONAI: padding adds the odd voxel at the end, cropping halves both sides and rounds down.
            before = (side - extent) // 2 if side >= extent else side // 2 - extent // 2
            start.append(part.start - before)
            sides.append(side)
        return cls(frame, tuple(start), tuple(sides))

    @property
    def affine(self) -> np.ndarray:
        """4×4, voxel of the window to mm."""
        affine = self.frame.affine
        shifted = np.array(affine, dtype=np.float64)
        shifted[:3, 3] = affine[:3, :3] @ np.asarray(self.start, dtype=np.float64) + affine[:3, 3]
        return shifted

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """Return the window's part of a volume of the frame; 0 outside the frame."""
        window = np.zeros(self.sides, dtype=whole.dtype)
        inside, part = self._overlap()
        window[part] = whole[inside]
        return window

    def paste(self, window: np.ndarray) -> np.ndarray:
        """Undo :meth:`cut`: paste the window into zeros."""
        whole = np.zeros(self.frame.shape, dtype=window.dtype)
        inside, part = self._overlap()
        whole[inside] = window[part]
        return whole

    def _overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the place of the window in the frame, and the place of that part in the window."""
        inside, part = [], []
        for first, side, length in zip(self.start, self.sides, self.frame.shape, strict=True):
            low = min(max(first, 0), length)
            high = max(low, min(first + side, length))
            inside.append(slice(low, high))
            part.append(slice(low - first, high - first))
        return tuple(inside), tuple(part)
