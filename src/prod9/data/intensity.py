"""Which voxels of a scan are head, and how raw intensities become [0, 1]: asked here by every command.

Everything is decided on the raw voxels of the file, before any resampling: interpolation blends the head with
the background, which moves minima and percentiles.
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
_DOMINANCE = 5
"""A background fills at least these shares of the outer faces and of the volume, and is this many times as
frequent on the faces as any other value. Tissue and the noise of unstripped scans are neither."""
_HEAD_SHARE = 0.05
_MAX_BACKGROUNDS = 3


@dataclass(frozen=True)
class Background:
    """The values that fill what lies around the head, most often one.

    values: 0 alone where no value dominates the outer faces. tolerance: voxels as near as this to a value count as it.
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
        return reduce(np.logical_or, within)

    def __str__(self) -> str:
        """Return the values as text."""
        return " and ".join(f"{value:.6g}" for value in self.values)


def find_background(raw: np.ndarray) -> Background:
    """Return the background of a volume ``[H W D]``, found on its outer faces.

    A value that dominates the faces and fills a part of the volume is background, whatever it is: scans that were
    z-scored as a whole have one far below 0. What it leaves is boxed and looked at in the same way, since such a
    scan may have been padded with zeros afterwards. Where no value dominates, voxels of exactly 0 are background.
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
        least = _HEAD_SHARE * box.size if values else 1  # or a head of one intensity would count as padding
        if filled.mean() < _VOLUME_SHARE or left.sum() < least:
            break
        values.append(value)
        head = left
        box = raw[bounding_box(head)]
    return Background(tuple(values), tolerance) if values else Background()


@dataclass(frozen=True, eq=False)
class Scale:
    """How one volume's raw intensities become [0, 1].

    low, high: raw intensities of 0 and 1. head: bool on the voxels of the volume. background: what lies around it.
    """

    low: float
    high: float
    head: np.ndarray
    background: Background

    def to_unit(self, raw: np.ndarray) -> np.ndarray:
        """Return float32 in [0, 1], clipped, exactly 0 outside of the head."""
        unit = np.zeros(raw.shape, dtype=np.float32)
        unit[self.head] = np.clip((raw[self.head] - self.low) / (self.high - self.low), 0.0, 1.0)
        return unit


@dataclass(frozen=True)
class IntensityScaling:
    """How raw intensities become [0, 1], clipping on both sides.

    ``percentile``: the percentiles ``lower`` and ``upper`` of each volume's head become 0 and 1, the head being all
    that is not background (see :func:`find_background`). ``range``: the raw values ``lower`` and ``upper`` become 0
    and 1, and the head is what lies above ``lower``. Outside of the head, the result is exactly 0.
    """

    mode: Literal["percentile", "range"]
    lower: float
    upper: float

    def head(self, raw: np.ndarray) -> np.ndarray:
        """Return bool of the shape of ``raw`` ``[H W D]``, True where the head is."""
        return raw > self.lower if self.mode == "range" else ~find_background(raw).covers(raw)

    def scale(self, raw: np.ndarray, source: Path | str) -> Scale:
        """Return how the volume ``raw [H W D]`` is scaled; DataError naming ``source`` where it shows no head."""
        if self.mode == "range":
            head = raw > self.lower
            _require_head(head, source)
            return Scale(self.lower, self.upper, head, Background((self.lower,)))
        background = find_background(raw)
        head = ~background.covers(raw)
        _require_head(head, source)
        low, high = np.percentile(raw[head], (self.lower, self.upper))
        if not high > low:
            raise DataError(
                f"{source}: expected different intensities inside the head, got {low:g} throughout; "
                "leave the volume out."
            )
        return Scale(low, high, head, background)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box of what is True in ``mask [H W D]``; there must be something."""
    sides = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return sides[0], sides[1], sides[2]


def _require_head(head: np.ndarray, source: Path | str) -> None:
    if not head.any():
        raise DataError(f"{source}: expected a head, got background only; leave the volume out.")


def _spread(raw: np.ndarray) -> float:
    """Return the range of intensities without outliers, from every fourth voxel along each axis."""
    low, high = np.percentile(raw[::4, ::4, ::4], (0.5, 99.5))
    return float(high - low)


def _faces(box: np.ndarray) -> np.ndarray:
    """Return the voxels of the six outer faces, those of edges more than once."""
    planes = [box[0], box[-1], box[:, 0], box[:, -1], box[:, :, 0], box[:, :, -1]]
    return np.concatenate([plane.ravel() for plane in planes])


def _dominant(values: np.ndarray, tolerance: float, *, exclude: list[float]) -> float | None:
    """Return the value that dominates ``values``, leaving out those near ``exclude``; None where none does."""
    total = values.size
    for known in exclude:
        values = values[np.abs(values - known) > tolerance]
    if values.size == 0:
        return None
    found, counts = np.unique(values, return_counts=True)
    # Values within the tolerance count together: sums over a sliding window of the sorted values.
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
