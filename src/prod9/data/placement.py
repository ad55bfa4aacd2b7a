"""Between a file's own voxels and the model's grid, there and back.

A case is brought to the grid exactly as the preprocessing of training does it; what a model makes on the grid
is laid back into the voxels of the files: their axes, shape and affine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from monai import transforms as mt
from monai.data.meta_tensor import MetaTensor

from prod9 import volumes
from prod9.data.transforms import IntensityScaling
from prod9.errors import DataError
from prod9.volumes import VolumeFile, VolumeHeader

Mode = Literal["bilinear", "nearest"]
_SAME_GRID = 1e-2
"""Millimetres by which affines of one grid may differ; the preprocessing of training allows the same."""


@dataclass(frozen=True, eq=False)
class PlacedCase:
    """One case on the model's grid, and the way back.

    images: by name, float32 ``[H W D]`` in [0, 1], on the grid. head: bool, the same shape: what is head in
    any of them. affine: 4×4 of the grid, voxel to mm. scales: by name, the raw intensities of 0 and 1.
    header: of the first file; all lie on its voxels. spacing: mm of the grid, None for the file's.
    start: the first voxel of the grid in the file's voxels, RAS and resampled; it may lie outside.
    resampled_shape, resampled_affine: of those voxels.
    """

    images: dict[str, np.ndarray]
    head: np.ndarray
    affine: np.ndarray
    scales: dict[str, tuple[float, float]]
    header: VolumeHeader
    spacing: tuple[float, float, float] | None
    start: tuple[int, ...]
    resampled_shape: tuple[int, ...]
    resampled_affine: np.ndarray

    def to_grid(self, data: np.ndarray, mode: Mode = "bilinear") -> np.ndarray:
        """Return float32 on the grid of ``data``, given in the voxels of the files; 0 beyond them."""
        ras, affine = volumes.to_ras(data, self.header.affine)
        placed = _resampled(ras.astype(np.float32), affine, self.spacing, mode).numpy()[0]
        return cut(placed, self.start, self.head.shape)

    def to_file(self, data: np.ndarray, mode: Mode = "bilinear") -> np.ndarray:
        """Return float32 in the voxels of the files of ``data``, given on the grid; 0 beyond the grid."""
        whole = paste(data.astype(np.float32), self.start, self.resampled_shape)
        if self.spacing is not None:
            ras_shape, ras_affine = _ras_grid(self.header)
            back = mt.SpatialResample(mode=mode, padding_mode="border")
            placed = as_meta(whole, self.resampled_affine)
            whole = back(placed, dst_affine=torch.from_numpy(ras_affine), spatial_size=ras_shape).numpy()[0]
        return volumes.from_ras(whole, self.header)


class GridPlacer:
    """Brings cases to the grid of a trained model.

    spacing: mm to resample to, None for the file's. grid: voxels ``(H, W, D)``; the head is centred on it,
    and one that is larger is cut, as in training. intensity: how raw values become [0, 1].
    """

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None,
        grid: Sequence[int],
        intensity: IntensityScaling,
    ) -> None:
        self.spacing = None if spacing is None else cast("tuple[float, float, float]", tuple(spacing))
        self.grid = tuple(grid)
        self.intensity = intensity

    def place(self, files: Mapping[str, VolumeFile]) -> PlacedCase:
        """Return the case of ``files``, by name, which lie on one voxel grid.

        Raises DataError for files on different grids, for one without a head, or of a single intensity.
        """
        header = next(iter(files.values())).header
        for file in files.values():
            check_same_grid(header, file.header)
        resampled = {name: self._resampled(file) for name, file in files.items()}
        placed = {name: volume.numpy()[0] for name, volume in resampled.items()}
        heads = {name: self._head(volume) for name, volume in placed.items()}
        head = np.logical_or.reduce(list(heads.values()))
        scales = {
            name: self._scale(volume[heads[name]], files[name].header.path) for name, volume in placed.items()
        }
        start = self._start(head)
        images = {
            name: cut(_unit(volume, heads[name], *scales[name]), start, self.grid)
            for name, volume in placed.items()
        }
        affine = next(iter(resampled.values())).affine.numpy().astype(np.float64)
        return PlacedCase(
            images=images,
            head=cut(head, start, self.grid),
            affine=shifted(affine, start),
            scales=scales,
            header=header,
            spacing=self.spacing,
            start=start,
            resampled_shape=head.shape,
            resampled_affine=affine,
        )

    def _resampled(self, file: VolumeFile) -> MetaTensor:
        ras, affine = volumes.to_ras(file.data, file.header.affine)
        return _resampled(ras, affine, self.spacing, "bilinear")

    def _head(self, raw: np.ndarray) -> np.ndarray:
        return self.intensity.foreground(torch.from_numpy(np.ascontiguousarray(raw))).numpy()

    def _scale(self, inside: np.ndarray, path: Path) -> tuple[float, float]:
        if not inside.size:
            raise DataError(f"{path}: expected a head, got background only; leave this file out.")
        scaling = self.intensity
        if scaling.mode == "range":
            return scaling.lower, scaling.upper
        low, high = np.percentile(inside, (scaling.lower, scaling.upper))
        if not high > low:
            raise DataError(
                f"{path}: expected different intensities inside the head, got {low:g} throughout; "
                "leave this file out."
            )
        return float(low), float(high)

    def _start(self, head: np.ndarray) -> tuple[int, ...]:
        """Return where the grid begins: the head's box padded evenly, or its middle cut out, as MONAI does."""
        start = []
        for positions, side in zip(np.nonzero(head), self.grid, strict=True):
            first, extent = int(positions.min()), int(np.ptp(positions)) + 1
            beyond = extent // 2 - side // 2 if extent > side else -((side - extent) // 2)
            start.append(first + beyond)
        return tuple(start)


def check_same_grid(first: VolumeHeader, other: VolumeHeader) -> None:
    """Raise a DataError that names both files unless they lie on one voxel grid."""
    if other.shape != first.shape or not np.allclose(other.affine, first.affine, atol=_SAME_GRID):
        raise DataError(
            f"{other.path}: expected the voxel grid of {first.path}, {first.shape}, got {other.shape} or "
            "another affine; register and resample them to one grid first."
        )


def cut(whole: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Return the window of ``shape`` from ``start``, zero where it sticks out."""
    window = np.zeros(tuple(shape), dtype=whole.dtype)
    inside, part = _overlap(start, shape, whole.shape)
    window[part] = whole[inside]
    return window


def paste(window: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Undo ``cut``: lay the window into zeros of ``shape``."""
    whole = np.zeros(tuple(shape), dtype=window.dtype)
    inside, part = _overlap(start, window.shape, shape)
    whole[inside] = window[part]
    return whole


def shifted(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Return ``affine`` with its origin at voxel ``start``."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = affine[:3, :3] @ np.asarray(start, dtype=np.float64) + affine[:3, 3]
    return moved


def as_meta(volume: np.ndarray, affine: np.ndarray) -> MetaTensor:
    """Return ``volume [H W D]`` as ``[1 H W D]`` for MONAI's transforms."""
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], affine=torch.from_numpy(affine))


def _ras_grid(header: VolumeHeader) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of the file's voxels in RAS order."""
    # A view of one element: only its shape is looked at.
    ras, affine = volumes.to_ras(np.broadcast_to(np.zeros((), np.bool_), header.shape), header.affine)
    return ras.shape, affine


def _resampled(
    ras: np.ndarray, affine: np.ndarray, spacing: tuple[float, float, float] | None, mode: Mode
) -> MetaTensor:
    volume = as_meta(ras, affine)
    return volume if spacing is None else cast(MetaTensor, mt.Spacing(pixdim=spacing, mode=mode)(volume))


def _unit(raw: np.ndarray, head: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.where(head, np.clip((raw - low) / (high - low), 0.0, 1.0), 0.0).astype(np.float32)


def _overlap(
    start: Sequence[int], shape: Sequence[int], whole: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a window lies in the whole, and where that part lies in the window."""
    bounds = [
        (max(s, 0), max(min(s + n, length), 0)) for s, n, length in zip(start, shape, whole, strict=True)
    ]
    inside = tuple(slice(low, high) for low, high in bounds)
    return inside, tuple(slice(low - s, high - s) for (low, high), s in zip(bounds, start, strict=True))
