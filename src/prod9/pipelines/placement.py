"""From a patient's files to the grid of a model and back, by the preprocessing that training uses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from monai import transforms as mt
from monai.data.meta_tensor import MetaTensor

from prod9 import volumes
from prod9.data.dictionary import FILENAME
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import DataError
from prod9.volumes import VolumeFile, VolumeHeader

_TOLERANCE = 1e-2
"""Millimetres by which affines of one voxel grid may differ, as in training."""

HEAD_THRESHOLD = 0.1
"""Decoded intensities above it are head: decoding blurs the border, and leaves the background near 0, not at it.

Of 0.02, 0.04, 0.06 and 0.1 the last found the heads of the simulated cohort best (Dice 0.93 to 0.98).
"""


@dataclass(frozen=True, eq=False)
class Placed:
    """A head on the model's grid, and the way back to the voxels of the reference file.

    images: name → float32 ``[H W D]`` in [0, 1]. seg: uint8 ``[H W D]``, labels as they were, or None.
    affine: 4×4, voxel to mm of the grid. reference: header of the first file. head: bool, True where any image
    has foreground; on the voxels of the reference, in its axes. low, high: raw intensities of 0 and 1 there.
    cut: share of the head that lies beyond the grid.
    """

    images: dict[str, np.ndarray]
    seg: np.ndarray | None
    affine: np.ndarray
    reference: VolumeHeader
    head: np.ndarray
    low: float
    high: float
    cut: float

    def restore(self, unit: np.ndarray, *, difference: bool = False) -> np.ndarray:
        """Return float32 on the voxels of the reference, in its axes and intensities, 0 outside the head.

        unit: ``[H W D]`` in [0, 1] on the grid. difference: it is a difference of intensities: scaled, not
        shifted.
        """
        whole = self.lay_back(unit)
        raw = whole * (self.high - self.low) + (0.0 if difference else self.low)
        return np.where(self.head, raw, 0.0).astype(np.float32)

    def lay_back(self, data: np.ndarray) -> np.ndarray:
        """Return ``data [H W D]`` of the grid on the voxels of the reference, in its axes; 0 beyond the grid."""
        shape, affine = _ras_grid(self.reference)
        back = mt.SpatialResample(mode="bilinear", padding_mode="zeros")
        placed = back(_meta(data, self.affine), dst_affine=torch.from_numpy(affine), spatial_size=shape)
        return volumes.from_ras(np.asarray(placed)[0], self.reference)


class GridPlacement:
    """Brings files to a model's grid: RAS, spacing, foreground box of all of them, intensities, pad or crop.

    spacing: mm to resample to, None for the file's. grid: voxels ``(H, W, D)``. intensity: how raw values
    become [0, 1]. crop: False where training keeps the whole field of view, as with MedMNIST3D.
    """

    def __init__(
        self,
        *,
        spacing: tuple[float, float, float] | None,
        grid: tuple[int, int, int],
        intensity: IntensityScaling,
        crop: bool = True,
    ) -> None:
        self.grid = grid
        self._crop = crop
        self.intensity = intensity
        self._builder = TransformBuilder(
            spacing=spacing,
            grid=grid,
            crop_size=None,
            intensity=intensity,
            augment=Augmentation(
                flip_prob=0.0, bias_field_prob=0.0, gamma_prob=0.0, scale_prob=0.0, affine_prob=0.0
            ),
        )

    @classmethod
    def from_header(cls, data: Mapping[str, Any]) -> "GridPlacement":
        """Build from the ``data`` part of a checkpoint's header."""
        spacing = data["spacing"]
        return cls(
            spacing=None if spacing is None else tuple(spacing),
            grid=tuple(data["grid"]),
            intensity=IntensityScaling(**data["intensity"]),
            crop=data.get("crop_foreground", True),
        )

    def place(self, files: Mapping[str, VolumeFile], *, seg: VolumeFile | None = None) -> Placed:
        """Bring ``files`` of one voxel grid (see :func:`align`) to the model's grid; the first is the reference.

        seg: labels on the same voxels. Raises DataError for a volume without head or of one intensity.
        """
        data = {name: _from_file(file) for name, file in files.items()}
        if seg is not None:
            data["seg"] = _from_file(seg)
        placed = self._builder.build_placement(list(files), crop=self._crop)(data)
        reference = next(iter(files.values()))
        head = np.any([self._foreground(file.data) for file in files.values()], axis=0)
        low, high = self._bounds(reference)
        inside = placed[next(iter(files))]
        return Placed(
            images={name: placed[name].numpy()[0].astype(np.float32) for name in files},
            seg=None if seg is None else placed["seg"].numpy()[0].astype(np.uint8),
            affine=inside.affine.numpy().astype(np.float64),
            reference=reference.header,
            head=head,
            low=low,
            high=high,
            cut=share_beyond(head, reference.header, inside.affine.numpy(), self.grid),
        )

    def _foreground(self, raw: np.ndarray) -> np.ndarray:
        return self.intensity.foreground(torch.from_numpy(np.ascontiguousarray(raw))).numpy()

    def _bounds(self, file: VolumeFile) -> tuple[float, float]:
        scaling = self.intensity
        if scaling.mode == "range":
            return scaling.lower, scaling.upper
        inside = file.data[self._foreground(file.data)]
        low, high = np.percentile(inside, (scaling.lower, scaling.upper))
        return float(low), float(high)


def align(files: Mapping[str, VolumeFile], *, resample: bool = False) -> dict[str, VolumeFile]:
    """Return ``files`` on the voxels of the first one.

    resample: bring the others there by their affines (linear); otherwise a DataError names the two files
    that differ. Files are taken to be registered: nothing is moved.
    """
    first = next(iter(files.values()))
    aligned = {}
    for name, file in files.items():
        if _same_grid(file.header, first.header):
            aligned[name] = file
        elif resample:
            aligned[name] = _resampled(file, first.header)
        else:
            raise DataError(
                f"{file.header.path}: expected the voxel grid of {first.header.path}, {first.header.shape}, got "
                f"{file.header.shape} or another affine; register them first, or pass --resample if they are "
                "registered and differ in voxels only."
            )
    return aligned


def _same_grid(one: VolumeHeader, other: VolumeHeader) -> bool:
    return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=_TOLERANCE)


def _resampled(file: VolumeFile, reference: VolumeHeader) -> VolumeFile:
    moved = mt.SpatialResample(mode="bilinear", padding_mode="zeros")(
        _from_file(file), dst_affine=torch.from_numpy(reference.affine), spatial_size=reference.shape
    )
    header = replace(file.header, shape=reference.shape, affine=reference.affine)
    return VolumeFile(np.asarray(moved)[0].astype(np.float32), header)


def _from_file(file: VolumeFile) -> MetaTensor:
    volume = _meta(file.data, file.header.affine)
    volume.meta[FILENAME] = str(file.header.path)  # what refuses a volume names its file
    return volume


def _meta(volume: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], affine=torch.from_numpy(affine))


def _ras_grid(header: VolumeHeader) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a file after reorientation to RAS."""
    turned, affine = volumes.to_ras(np.broadcast_to(np.float32(0), header.shape), header.affine)
    return turned.shape, affine


def share_beyond(
    head: np.ndarray, header: VolumeHeader, grid_affine: np.ndarray, grid: tuple[int, int, int]
) -> float:
    """Return the share of the head's voxels whose centres lie outside the grid."""
    found = np.argwhere(head)
    to_grid = np.linalg.inv(grid_affine) @ header.affine
    places = found @ to_grid[:3, :3].T + to_grid[:3, 3]
    outside = ((places < -0.5) | (places > np.asarray(grid) - 0.5)).any(1)
    return float(cast(np.ndarray, outside).mean()) if len(found) else 0.0
