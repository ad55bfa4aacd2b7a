"""Pictures of volumes: the middle slice of each axis, side by side, many volumes in one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prod9.files import atomic_write


def three_planes(volume: np.ndarray) -> np.ndarray:
    """Return the middle slices of ``[H W D]`` across axes 2, 1 and 0 side by side, superior or anterior at the top.

    For a volume in RAS these are the axial, coronal and sagittal planes. Smaller slices are centred on black.
    """
    centre = [side // 2 for side in volume.shape]
    planes = [volume[:, :, centre[2]], volume[:, centre[1], :], volume[centre[0], :, :]]
    images = [np.flipud(plane.T) for plane in planes]
    height = max(image.shape[0] for image in images)
    padded = []
    for image in images:
        missing = height - image.shape[0]
        padded.append(np.pad(image, ((missing // 2, missing - missing // 2), (0, 0))))
    return np.concatenate(padded, axis=1)


def write_montage(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray]]], *, title: str = "") -> None:
    """Write rows of titled volumes ``[H W D]`` in [0, 1] to the PNG file ``path``."""
    columns = max(len(row) for row in rows)
    images = [[(name, three_planes(volume)) for name, volume in row] for row in rows]
    height, width = images[0][0][1].shape
    figure = Figure(figsize=(columns * 4.5, len(rows) * (4.5 * height / width + 0.25) + 0.35), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, images, strict=True):
        for axis, (name, image) in zip(line, row, strict=False):
            axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.set_title(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def write_gallery(path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Write one named row of middle axial slices for each list of volumes ``[H W D]`` in [0, 1]."""
    columns = max(len(volumes) for _, volumes in rows)
    strips = []
    for _, volumes in rows:
        slices = [np.flipud(volume[:, :, volume.shape[2] // 2].T) for volume in volumes]
        blank = np.zeros_like(slices[0])
        strips.append(np.concatenate([*slices, *[blank] * (columns - len(slices))], axis=1))
    height, width = strips[0].shape
    figure = Figure(figsize=(16, len(rows) * (16 * height / width + 0.25)), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, _), strip in zip(axes, rows, strips, strict=True):
        axis.set_axis_off()
        axis.imshow(strip, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(name, fontsize=9, loc="left")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
