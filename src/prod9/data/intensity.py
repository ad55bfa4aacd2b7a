"""Which voxels of a scan are head, and how raw intensities become [0, 1], for every command.

Both are found on the raw voxels of the file before any resampling, since interpolation mixes the head with the
background, which changes minima and percentiles.
"""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np

from prod9.errors import DataError

_TOLERANCE = 1e-5
"""Share of the intensity range by which values of one background may differ: rounding of float32 and of scalings."""
_BORDER_SHARE = 0.1
_VOLUME_SHARE = 0.02
_BELOW_ZERO_SHARE = 0.01
_DOMINANCE = 5
"""A background fills at least the first two shares of the outer faces and of the volume, and is this many times as
frequent on the faces as any other value. This holds for neither tissue nor the noise of scans with a skull. With a
larger share of the volume below 0 than the third, 0 is an intensity as any other."""
_HEAD_SHARE = 0.05
_MAX_BACKGROUNDS = 3
_LEVELS = 256


@dataclass(frozen=True)
class Background:
    """The values of the voxels around the head, in most scans a single one.

    Attributes:
        values: if no value dominates the outer faces, 0 alone, or none where 0 is an intensity as any other.
        tolerance: largest difference from a value at which a voxel is background.
    """

    values: tuple[float, ...] = (0.0,)
    tolerance: float = 0.0

    @property
    def is_zero(self) -> bool:
        """Return whether the background is 0, as in most skull-stripped data sets."""
        return all(abs(value) <= self.tolerance for value in self.values)

    def covers(self, raw: np.ndarray) -> np.ndarray:
        """Return bool of the shape of ``raw``, True where a voxel has a background value."""
        within = [
            (raw >= np.float32(value - self.tolerance)) & (raw <= np.float32(value + self.tolerance))
            for value in self.values
        ]
        return reduce(np.logical_or, within, np.zeros(raw.shape, dtype=bool))

    def __str__(self) -> str:
        """Return the values as text."""
        return " and ".join(f"{value:.6g}" for value in self.values)


def find_background(raw: np.ndarray) -> Background:
    """Return the background of a volume ``[H W D]``, found on its outer faces.

    Any value that dominates the faces and fills a part of the volume is background: scans that were z-scored with
    their background have one far below 0. The bounding box of the remaining voxels is searched in the same way, since
    such a scan may have been padded with zeros afterwards. If no value dominates, voxels of exactly 0 are background,
    unless a part of the volume lies below 0: in a CT, 0 is water, and such voxels lie scattered in the head.
    """
    tolerance = _TOLERANCE * _spread(raw)
    values: list[float] = []
    head = np.ones(raw.shape, dtype=bool)
    box = raw
    while len(values) < _MAX_BACKGROUNDS:
        value = _dominant(_faces(box), tolerance, exclude=values)
        if value is None:
            break
        filled = Background((value,), tolerance).covers(raw)
        left = head & ~filled
        least = _HEAD_SHARE * box.size if values else 1  # a head of one intensity is no second background
        if filled.mean() < _VOLUME_SHARE or left.sum() < least:
            break
        values.append(value)
        head = left
        box = raw[bounding_box(head)]
    if values:
        return Background(tuple(values), tolerance)
    return Background(()) if (raw < 0).mean() > _BELOW_ZERO_SHARE else Background()


@dataclass(frozen=True, eq=False)
class Scale:
    """How the raw intensities of one volume become [0, 1].

    Attributes:
        low: raw intensity that becomes 0.
        high: raw intensity that becomes 1.
        head: bool on the voxels of the volume.
        background: the values around the head.
    """

    low: float
    high: float
    head: np.ndarray
    background: Background

    def to_unit(self, raw: np.ndarray) -> np.ndarray:
        """Return float32 clipped to [0, 1], exactly 0 outside the head."""
        unit = np.zeros(raw.shape, dtype=np.float32)
        unit[self.head] = np.clip((raw[self.head] - self.low) / (self.high - self.low), 0.0, 1.0)
        return unit


@dataclass(frozen=True)
class IntensityScaling:
    """How raw intensities become [0, 1], clipped on both sides and exactly 0 outside the head.

    Attributes:
        mode: with ``percentile``, ``lower`` and ``upper`` are percentiles of each volume's head, which is everything
            but its background (see :func:`find_background`); with ``range`` they are raw values, and the head is
            where the raw values are above ``lower``.
        lower: becomes 0.
        upper: becomes 1.
    """

    mode: Literal["percentile", "range"]
    lower: float
    upper: float

    def head(self, raw: np.ndarray) -> np.ndarray:
        """Return bool of the shape of ``raw [H W D]``, True in the head."""
        return raw > self.lower if self.mode == "range" else ~find_background(raw).covers(raw)

    def scale(self, raw: np.ndarray, source: Path | str) -> Scale:
        """Return the scale of the volume ``raw [H W D]``; DataError naming ``source`` if there is no head."""
        in_range = self.mode == "range"
        background = Background((self.lower,)) if in_range else find_background(raw)
        head = raw > self.lower if in_range else ~background.covers(raw)
        if not head.any():
            raise DataError(f"{source}: expected a head, got background only; leave the volume out.")
        low, high = (
            (self.lower, self.upper) if in_range else np.percentile(raw[head], (self.lower, self.upper))
        )
        if not high > low:
            raise DataError(
                f"{source}: expected different intensities inside the head, got {low:g} throughout; "
                "leave the volume out."
            )
        return Scale(low, high, head, background)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the bounding box of the True voxels of ``mask [H W D]``, which has at least one."""
    sides = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return sides[0], sides[1], sides[2]


def _spread(raw: np.ndarray) -> float:
    """Return the range of intensities without outliers, measured on every fourth voxel along each axis."""
    low, high = np.percentile(raw[::4, ::4, ::4], (0.5, 99.5))
    return float(high - low)


def _faces(box: np.ndarray) -> np.ndarray:
    """Return the voxels of the six outer faces; those of edges occur more than once."""
    planes = [box[0], box[-1], box[:, 0], box[:, -1], box[:, :, 0], box[:, :, -1]]
    return np.concatenate([plane.ravel() for plane in planes])


def _dominant(values: np.ndarray, tolerance: float, *, exclude: list[float]) -> float | None:
    """Return the value that dominates ``values``, apart from those near ``exclude``; None if none does."""
    total = values.size
    for known in exclude:
        values = values[np.abs(values - known) > tolerance]
    if values.size == 0:
        return None
    found, counts = np.unique(values, return_counts=True)
    # Values within the tolerance are counted together, by sums over a sliding window of the sorted values.
    ends = np.searchsorted(found, found + tolerance, side="right")
    starts = np.searchsorted(found, found - tolerance, side="left")
    below = np.concatenate([[0], np.cumsum(counts)])
    near = below[ends] - below[starts]
    best = int(near.argmax())
    far = np.abs(found - found[best]) > 2 * tolerance
    runner_up = int(near[far].max()) if far.any() else 0
    if near[best] < _BORDER_SHARE * total or near[best] < _DOMINANCE * runner_up:
        return None
    cluster = slice(starts[best], ends[best])
    middle = np.searchsorted(np.cumsum(counts[cluster]), near[best] / 2)
    return float(found[cluster][middle])


def otsu_threshold(image: np.ndarray) -> int:
    """Return the level of ``image`` uint8 that best separates the values above it from all others.

    If all values are equal, none is above. N. Otsu, "A threshold selection method from gray-level histograms", IEEE
    Transactions on Systems, Man, and Cybernetics 9 (1), 1979: the least variance within the two classes.
    """
    counts = np.bincount(image.reshape(-1), minlength=_LEVELS).astype(np.float64)
    below = counts.cumsum()
    total, mass = below[-1], (counts * np.arange(_LEVELS)).cumsum()
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    between[(below == 0) | (above == 0)] = 0.0
    if not between.any():
        return int(image.max())
    # Levels without voxels are equally good; the middle one is farthest from both classes.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return int(best[len(best) // 2])
