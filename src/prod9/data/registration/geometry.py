"""Volumes in millimetres of RAS+: resampling along an affine transform, and grids along the axes of RAS.

A transform is a 4×4 matrix that takes points (mm) of one space to another. Resampling reads the source at the place
of every target voxel, so it takes the transform from target to source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi

from prod9.data.intensity import bounding_box, find_background, otsu_threshold

Array = np.ndarray
_ALIASING = 1.2
"""Ratio of voxel sizes from which a volume is smoothed before it is resampled to larger voxels."""
_REACH = 12
"""Voxels beyond which a step has no effect on cubic interpolation."""
_MOST_HEAD = 0.97
"""Largest share of a scan that its head fills, if the rest has one value."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A volume ``data [H W D]`` and its ``affine``, 4×4, voxels to mm of RAS+."""

    data: Array
    affine: Array

    @property
    def spacing(self) -> Array:
        """Voxel size in mm along the axes of ``data``."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def centre(self) -> Array:
        """The middle of the field of view in mm."""
        return apply(self.affine, (np.asarray(self.data.shape) - 1) / 2)


def apply(matrix: Array, points: Array) -> Array:
    """Return ``points [… 3]`` moved by ``matrix`` 4×4."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def resample(
    source: Placed, shape: Sequence[int], affine: Array, transform: Array, *, order: int, outside: float = 0.0
) -> Array:
    """Return ``source`` on the grid of ``shape`` and ``affine``, float32.

    Args:
        source: what is resampled; booleans and labels need ``order`` 0 to stay what they are.
        shape: sides of the target.
        affine: target voxels to mm.
        transform: mm of the target to mm of the source.
        order: 0 nearest, 1 linear, 3 cubic. With 1 and 3, a target of larger voxels gets a smoothed source.
        outside: value beyond the source's field of view.
    """
    data = np.asarray(source.data, dtype=np.float32)
    to_voxels = np.linalg.inv(source.affine) @ transform @ affine
    if order:
        # Frequencies that the target cannot hold would come back as moiré: a Gaussian whose width at half maximum
        # makes up for the difference of the voxel sizes takes them out.
        steps = np.linalg.norm(to_voxels[:3, :3], axis=1)
        widths = [np.sqrt(step**2 - 1) / 2.355 if step > _ALIASING else 0.0 for step in steps]
        if any(widths):
            data = ndi.gaussian_filter(data, widths, mode="nearest")
    result = ndi.affine_transform(
        data, to_voxels, output_shape=tuple(shape), order=order, mode="constant", cval=outside
    )
    # Cubic interpolation swings beyond the values that it stands between.
    return np.clip(result, min(data.min(), outside), max(data.max(), outside)) if order > 1 else result


def axis_aligned(shape: Sequence[int], affine: Array, spacing_mm: float) -> tuple[tuple[int, ...], Array]:
    """Return shape and affine of the grid along RAS, of cubic voxels, that covers a volume."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    placed = apply(affine, corners)
    low, high = placed.min(axis=0), placed.max(axis=0)
    sides = np.maximum(np.ceil((high - low) / spacing_mm).astype(int), 1)
    grid = np.diag([spacing_mm] * 3 + [1.0])
    grid[:3, 3] = (low + high) / 2 - (sides - 1) / 2 * spacing_mm
    return tuple(int(side) for side in sides), grid


def foreground(data: Array) -> Array:
    """Return bool of ``data [H W D]``: the head, or the brain of a stripped scan.

    A scan with a background of one value is stripped or was masked: all else is head. In the noise of other scans
    the head is what is brighter than Otsu's threshold, without holes.
    """
    inside = masked_head(data)
    if inside is None:
        top = float(np.percentile(data, 99.5))
        levels = (np.clip(data / max(top, 1e-6), 0, 1) * 255).astype(np.uint8)
        inside = levels > otsu_threshold(levels)
    return np.asarray(ndi.binary_fill_holes(ndi.binary_closing(inside, iterations=2)))


def masked_head(data: Array) -> Array | None:
    """Return bool of ``data [H W D]``: all but a background of one value; None where noise lies around the head."""
    inside = ~find_background(data).covers(data)
    return inside if inside.any() and inside.mean() <= _MOST_HEAD else None


def filled_around(data: Array, inside: Array) -> Array:
    """Return ``data`` with the value of the nearest voxel ``inside`` in each voxel around the box of these."""
    box = tuple(slice(max(0, part.start - _REACH), part.stop + _REACH) for part in bounding_box(inside))
    nearest: Array = ndi.distance_transform_edt(~inside[box], return_distances=False, return_indices=True)  # pyrefly: ignore[bad-assignment]
    filled = data.copy()
    filled[box] = data[box][tuple(nearest)]
    return filled


def overlap(first: Array, second: Array, *, within: Array | None = None) -> float:
    """Return intersection over union of two masks, among the voxels ``within``; 0 if both are empty."""
    if within is not None:
        first, second = first & within, second & within
    return float((first & second).sum() / max(1, (first | second).sum()))
