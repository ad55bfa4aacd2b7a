"""Slices of volumes as they are drawn: which plane, where, which side is which, and how long a centimetre is."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prod9.files import atomic_write

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: Mapping[Plane, tuple[int, int, int]] = {
    "axial": (0, 1, 2),
    "coronal": (0, 2, 1),
    "sagittal": (1, 2, 0),
}
"""Axes of RAS along the width and the height of a picture, and the one across it."""
_ENDS = ("LR", "PA", "IS")
_BARS_MM = (100, 50, 20, 10, 5, 2, 1)
INK, QUIET, BACKGROUND = "#e8eef2", "#9fb0bc", "#000000"


@dataclass(frozen=True, kw_only=True)
class View:
    """How volumes in RAS are shown.

    Attributes:
        spacing: voxel size in mm; None where it is unknown, then voxels count as cubes and no scale is drawn.
        radiological: show the patient's right on the left, as if seen from the feet; else left is left (neurological).
    """

    spacing: tuple[float, float, float] | None = None
    radiological: bool = False

    @property
    def words(self) -> str:
        """The convention, as a sentence."""
        if self.radiological:
            return "Radiological convention: the patient's right is on the left."
        return "Neurological convention: the patient's left is on the left."

    def size(self, axis: int) -> float:
        """Return the size of a voxel along ``axis`` in mm."""
        return 1.0 if self.spacing is None else float(self.spacing[axis])


def cut(volume: np.ndarray, plane: Plane, index: int, view: View) -> np.ndarray:
    """Return slice ``index`` of ``volume`` as a picture ``[h w]``, anterior or superior at the top.

    Args:
        volume: ``[H W D]`` in RAS.
        plane: of the slice.
        index: along the axis across it.
        view: voxel size and convention.
    """
    across, _, axis = PLANES[plane]
    picture = np.flipud(np.take(volume, index, axis=axis).T)
    return np.fliplr(picture) if view.radiological and across == 0 else picture


def sides(plane: Plane, view: View) -> tuple[str, str, str, str]:
    """Return the letters at the left, right, top and bottom of a picture of ``plane``."""
    x, y, _ = PLANES[plane]
    low, high = _ENDS[x]
    left, right = (high, low) if view.radiological and x == 0 else (low, high)
    return left, right, _ENDS[y][1], _ENDS[y][0]


def widest_slice(mask: np.ndarray | None, shape: Sequence[int], plane: Plane = "axial") -> int:
    """Return the slice in which ``mask`` (``[H W D]``, not 0 in a lesion) is widest; the middle one without any."""
    axis = PLANES[plane][2]
    if mask is None or not mask.any():
        return shape[axis] // 2
    others = tuple({0, 1, 2} - {axis})
    return int(np.argmax((mask > 0).sum(axis=others)))


def widest_slices(mask: np.ndarray | None, shape: Sequence[int]) -> dict[Plane, int]:
    """Return :func:`widest_slice` of each plane."""
    return {plane: widest_slice(mask, shape, plane) for plane in PLANES}


def frame(axis: Axes) -> None:
    """Take ticks and lines off ``axis``; its title and its label below stay."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_facecolor(BACKGROUND)
    for spine in axis.spines.values():
        spine.set_visible(False)


def extent(
    volume: np.ndarray, plane: Plane, view: View, left: float = 0.0
) -> tuple[float, float, float, float]:
    """Return where a picture lies in mm: left, right, bottom, top.

    Args:
        volume: ``[H W D]`` in RAS.
        plane: of the picture.
        view: voxel size and convention.
        left: where it begins, in mm.
    """
    x, y, _ = PLANES[plane]
    return left, left + volume.shape[x] * view.size(x), 0.0, volume.shape[y] * view.size(y)


def mark(axis: Axes, plane: Plane, box: tuple[float, float, float, float], view: View, *, bar: bool) -> None:
    """Write the sides of the patient around a picture that lies in ``box``, and a scale into it.

    Args:
        axis: where the picture was drawn, in mm.
        plane: of the picture.
        box: left, right, bottom and top.
        view: says which side is which.
        bar: draw a scale, if the size of voxels is known.
    """
    left, right, bottom, top = box
    middle = ((left + right) / 2, (bottom + top) / 2)
    one, other, above, below = sides(plane, view)
    edge = 0.02 * (right - left)
    places = (
        (one, left + edge, middle[1], "left", "center"),
        (other, right - edge, middle[1], "right", "center"),
        (above, middle[0], top - edge, "center", "top"),
        (below, middle[0], bottom + edge, "center", "bottom"),
    )
    for letter, x, y, horizontal, vertical in places:
        axis.text(x, y, letter, color=QUIET, fontsize=8, ha=horizontal, va=vertical)
    if bar and view.spacing is not None:
        _scale(axis, box)


def _scale(axis: Axes, box: tuple[float, float, float, float]) -> None:
    left, right, bottom, _ = box
    width = right - left
    length = next((mm for mm in _BARS_MM if mm <= 0.4 * width), _BARS_MM[-1])
    start, height = left + 0.04 * width, bottom + 0.04 * width
    axis.plot([start, start + length], [height, height], color=INK, linewidth=2, solid_capstyle="butt")
    axis.text(start, height + 0.02 * width, f"{length} mm", color=INK, fontsize=7, ha="left", va="bottom")


def png(figure: Figure) -> bytes:
    """Return ``figure`` as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def write_png(path: Path, figure: Figure) -> None:
    """Write ``figure`` as a PNG file; nothing half-written stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))
