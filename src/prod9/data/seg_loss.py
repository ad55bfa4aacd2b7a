"""What a model's grid keeps of a segmentation: small lesions may fall between its voxels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage

from prod9.data.intensity import bounding_box
from prod9.volumes import VolumeFile

_SHRUNK = 0.8
"""A label has shrunk if less than this share of its volume is left."""


@dataclass(frozen=True)
class Kept:
    """What a grid keeps of one label; voxels of the file outside the grid do not count.

    Attributes:
        parts: separate parts in the file, where voxels connect over faces, edges and corners.
        parts_kept: parts with a voxel on the grid.
        ml: volume in the file, in millilitres.
        ml_kept: volume on the grid.
    """

    parts: int
    parts_kept: int
    ml: float
    ml_kept: float

    @property
    def suffers(self) -> bool:
        """Return whether parts vanish, or the label loses more than a fifth of its volume."""
        return self.parts_kept < self.parts or self.ml_kept < _SHRUNK * self.ml

    def __str__(self) -> str:
        """Return the loss in words."""
        return (
            f"{self.parts - self.parts_kept} of {self.parts} separate parts vanish, "
            f"{self.ml_kept:.2f} of {self.ml:.2f} ml are left"
        )


def kept_labels(seg: VolumeFile, placed: np.ndarray, affine: np.ndarray) -> dict[int, Kept]:
    """Return what the grid keeps of each label of ``seg`` that lies in it at least partly.

    ``placed [H W D]`` is the segmentation on the grid, whose 4×4 ``affine`` maps voxels to mm.
    """
    found = np.asarray(seg.data)
    if not found.any():
        return {}
    box = bounding_box(found != 0)
    corner = np.asarray([part.start for part in box], dtype=np.float64)
    raw = np.rint(found[box]).astype(np.int64)
    to_grid = np.linalg.inv(affine) @ seg.header.affine
    voxel_ml, grid_ml = (abs(float(np.linalg.det(a[:3, :3]))) / 1000 for a in (seg.header.affine, affine))
    kept = {}
    for label in np.unique(raw[raw != 0]).tolist():
        parts, _ = cast(
            tuple[np.ndarray, int], ndimage.label(raw == label, structure=np.ones((3, 3, 3), int))
        )
        places = np.argwhere(parts)
        on_grid = (places + corner) @ to_grid[:3, :3].T + to_grid[:3, 3]
        within = ((on_grid > -0.5) & (on_grid < np.asarray(placed.shape) - 0.5)).all(1)
        there = np.unique(parts[tuple(places[within].T)])
        if there.size:
            left = np.argwhere(placed == label)
            sampled = np.intersect1d(_sampled(parts, left, np.linalg.inv(to_grid), corner), there)
            kept[label] = Kept(
                int(there.size), int(sampled.size), int(within.sum()) * voxel_ml, len(left) * grid_ml
            )
    return kept


def describe_loss(kept: Mapping[int, Kept]) -> str | None:
    """Return in words which labels lose small parts or much of their volume; None if none does."""
    suffering = {label: one for label, one in kept.items() if one.suffers}
    return "; ".join(f"label {label}: {one}" for label, one in suffering.items()) or None


def _sampled(parts: np.ndarray, left: np.ndarray, to_file: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Return the numbers of the parts that the voxels ``left [n 3]`` of the grid were sampled from."""
    places = np.rint(left @ to_file[:3, :3].T + to_file[:3, 3] - corner).astype(np.int64)
    inside = ((places >= 0) & (places < parts.shape)).all(1)
    return np.unique(parts[tuple(places[inside].T)])
