"""Smooth heads with a known intensity everywhere, on any voxels: what goes in can be told from what comes out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prod9.volumes import VolumeFile, VolumeHeader

CENTRE = np.array([4.0, -3.0, 6.0])
RADII = np.array([60.0, 72.0, 54.0])


def radius(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return how far each voxel lies from the centre, in radii of the head."""
    indices = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1)
    places = indices @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm((places - CENTRE) / RADII, axis=-1)


def head(shape: Sequence[int], affine: np.ndarray, *, low: float = 200.0, high: float = 1000.0) -> np.ndarray:
    """Return float32: a head whose intensity falls smoothly from ``high`` in the middle to ``low`` at its border.

    Around it is exactly 0.
    """
    r = radius(shape, affine)
    return np.where(r < 1, low + (high - low) * (1 - r**2), 0.0).astype(np.float32)


def centred(
    spacing: Sequence[float], size_mm: Sequence[float] = (150.0, 180.0, 140.0)
) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a straight grid of ``spacing`` mm that holds the head."""
    shape = tuple(int(np.ceil(size / mm)) for size, mm in zip(size_mm, spacing, strict=True))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTRE - (np.asarray(shape) - 1) / 2 * np.asarray(spacing)
    return shape, affine


def as_file(data: np.ndarray, affine: np.ndarray, name: str = "volume.nii.gz") -> VolumeFile:
    """Return ``data`` as if it had been read from a file."""
    header = VolumeHeader(Path(name), data.shape, affine, data.dtype, data.shape, 352)
    return VolumeFile(data.astype(np.float32), header)
