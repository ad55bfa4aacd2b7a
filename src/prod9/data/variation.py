"""New lesion masks from given ones: moved, turned, scaled, mirrored and warped, within the brain.

What comes out is as varied as what went in: shapes are those of real lesions, deformed. It invents no kind of lesion.
All lengths are millimetres, all coordinates RAS+.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.ndimage as ndi

from prod9.data.lesions import Lesion
from prod9.data.simulated.anatomy import smooth_noise
from prod9.errors import DataError

Array = np.ndarray
_TRIES = 60
_STRIDE_MM = 3.0
_INSIDE = 0.97
"""Share of a moved lesion that has to lie in the brain; what is left over is cut off."""
_COPY = 0.9
"""Dice from which a mask counts as the one it came from."""
_SCALE_SD = 0.2
_SCALE_RANGE = (0.65, 1.5)
_SHIFT_SD_MM = 18.0
_TURN_SD = 20.0
_WARP_MM = 3.0
_WARP_SCALE_MM = 28.0


@dataclass(frozen=True)
class Variation:
    """How a mask was changed.

    Attributes:
        mirrored: left and right exchanged, at the middle of the brain.
        scale: factor of lengths.
        turn_deg: angles about x, y and z.
        shift_mm: of the lesion's centre, after mirroring.
        warp_mm: largest displacement of the warp.
        cut: share of the lesion that lay outside the brain and was cut off.
        volume_ml: of the result, all labels together.
    """

    mirrored: bool
    scale: float
    turn_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    warp_mm: float
    cut: float
    volume_ml: float

    def describe(self) -> dict[str, Any]:
        """Return it as plain values, for a manifest."""
        return {
            name: [round(item, 2) for item in value] if isinstance(value, tuple)
            else round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }  # fmt: skip


def vary(lesion: Lesion, rng: np.random.Generator) -> tuple[Array, Variation]:
    """Return a new mask (labels uint8) on the voxels of ``lesion``, and what was done.

    Draws changes until one keeps 97% of the lesion in the brain and is no copy of it; moves become smaller after
    failures, since a large lesion has little room.

    Raises:
        DataError: for an empty mask, one that lies outside the brain, or one without room for any change.

    Example:
        >>> import numpy as np
        >>> from prod9.data.lesions import Lesion
        >>> from prod9.data.variation import vary
        >>> brain = np.ones((40, 40, 40), bool)
        >>> labels = np.zeros((40, 40, 40), np.uint8)
        >>> labels[12:18, 10:16, 20:26] = 1
        >>> mask, done = vary(Lesion(labels, brain, np.diag([2.0, 2.0, 2.0, 1.0])), np.random.default_rng(0))
        >>> mask.shape, bool(mask.any()), np.unique(mask).tolist()
        ((40, 40, 40), True, [0, 1])
    """
    if not lesion.labels.any():
        raise DataError("expected a mask with a lesion, got an empty one; leave it out")
    inside = float(lesion.brain[lesion.labels > 0].mean())
    if inside < 0.5:
        raise DataError(
            f"expected a lesion within the brain, got {1 - inside:.0%} of it outside; check that mask and scan belong "
            "together"
        )
    drawing = _Drawing(lesion)
    for attempt in range(_TRIES):
        change = drawing.draw(rng, room=0.97**attempt)
        if drawing.fits(change):
            labels = drawing.labels_of(change, stride=1)
            cut = float((labels[~lesion.brain] > 0).sum() / max(1, (labels > 0).sum()))
            labels = np.where(lesion.brain, labels, 0).astype(np.uint8)
            if cut <= 1 - _INSIDE and labels.any() and _dice(labels, lesion.labels) < _COPY:
                return labels, change.described(cut, labels, lesion)
    raise DataError(
        f"expected room to move the lesion within the brain, got none in {_TRIES} tries; it may fill most of the brain"
    )


@dataclass(frozen=True, eq=False)
class _Change:
    """One draw. back: 4×4, mm of the new mask to mm of the old one. warp: mm ``[3 H W D]``."""

    back: Array
    warp: Array
    mirrored: bool
    scale: float
    turn_deg: Array
    shift: Array

    def described(self, cut: float, labels: Array, lesion: Lesion) -> Variation:
        turn, shift = ([float(value) for value in values] for values in (self.turn_deg, self.shift))
        return Variation(
            mirrored=self.mirrored,
            scale=self.scale,
            turn_deg=(turn[0], turn[1], turn[2]),
            shift_mm=(shift[0], shift[1], shift[2]),
            warp_mm=float(np.sqrt((self.warp**2).sum(0)).max()),
            cut=cut,
            volume_ml=float((labels > 0).sum() * np.prod(lesion.spacing) / 1000),
        )


class _Drawing:
    """Draws changes of one lesion and applies them."""

    def __init__(self, lesion: Lesion) -> None:
        self._lesion = lesion
        self._stride = max(1, round(_STRIDE_MM / float(lesion.spacing.min())))
        self._centre = _centre(lesion.labels > 0, lesion.affine)
        self._middle = float(_centre(lesion.brain, lesion.affine)[0])
        self._to_voxels = np.linalg.inv(lesion.affine)

    def draw(self, rng: np.random.Generator, *, room: float) -> _Change:
        """Return a change; ``room``: factor of the moves."""
        mirrored = bool(rng.random() < 0.5)
        scale = float(np.clip(np.exp(rng.normal(0, _SCALE_SD)), *_SCALE_RANGE))
        turn = rng.normal(0, _TURN_SD, 3)
        shift = rng.normal(0, _SHIFT_SD_MM, 3) * room
        shape = self._lesion.labels.shape
        spacing = float(self._lesion.spacing.mean())
        warp = np.stack([_WARP_MM * smooth_noise(shape, spacing, _WARP_SCALE_MM, rng) for _ in range(3)])
        back = np.eye(4)
        back[:3, :3] = _rotation(np.deg2rad(turn)).T / scale
        flip = np.diag([-1.0 if mirrored else 1.0, 1, 1])
        start = self._mirrored(self._centre) if mirrored else self._centre
        back[:3, 3] = start - back[:3, :3] @ (start + shift)
        mirror = np.eye(4)
        mirror[:3, :3] = flip
        mirror[0, 3] = 2 * self._middle if mirrored else 0.0
        return _Change(mirror @ back, warp, mirrored, scale, turn, shift)

    def fits(self, change: _Change) -> bool:
        """Return whether the changed lesion lies in the brain, by every few voxels."""
        step = (slice(None, None, self._stride),) * 3
        moved = self.labels_of(change, stride=self._stride) > 0
        count = int(moved.sum())
        return count > 0 and float(self._lesion.brain[step][moved].mean()) >= _INSIDE

    def labels_of(self, change: _Change, *, stride: int) -> Array:
        """Return the labels of the changed lesion at every ``stride``-th voxel, not cut to the brain."""
        axes = [np.arange(0, side, stride) for side in self._lesion.labels.shape]
        grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)
        warp = change.warp[:, ::stride, ::stride, ::stride].reshape(3, -1)
        affine = self._lesion.affine
        places = affine[:3, :3] @ grid + affine[:3, 3:] + warp
        to_source = self._to_voxels @ change.back
        voxels = to_source[:3, :3] @ places + to_source[:3, 3:]
        found = ndi.map_coordinates(self._lesion.labels, voxels, order=0, mode="constant", cval=0)
        return found.reshape([len(axis) for axis in axes])

    def _mirrored(self, point: Array) -> Array:
        return np.asarray([2 * self._middle - point[0], point[1], point[2]])


def _centre(region: Array, affine: Array) -> Array:
    return affine[:3] @ [*ndi.center_of_mass(region), 1.0]


def _rotation(angles: Array) -> Array:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _dice(first: Array, second: Array) -> float:
    a, b = first > 0, second > 0
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
