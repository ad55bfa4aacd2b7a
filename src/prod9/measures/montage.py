"""Pictures of many volumes: three planes each, or one axial slice each, in one PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prod9.measures.slices import (
    BACKGROUND,
    INK,
    PLANES,
    QUIET,
    Plane,
    View,
    cut,
    extent,
    frame,
    mark,
    png,
    widest_slices,
    write_png,
)

_WIDTH = 4.5
_WINDOW = "Window: 0 (black) to 1 (white) of each scan's range."


@dataclass(frozen=True, eq=False)
class Cell:
    """A volume in a montage.

    Attributes:
        title: above it.
        volume: ``[H W D]`` in [0, 1].
        at: the slice of each plane; None for the middle ones.
        spacing: its voxel size in mm, where it differs from that of the view.
    """

    title: str
    volume: np.ndarray
    at: Mapping[Plane, int] | None = None
    spacing: tuple[float, float, float] | None = None


def write_montage(
    path: Path, rows: Sequence[Sequence[Cell]], *, title: str = "", view: View | None = None
) -> None:
    """Write rows of volumes in three planes to the PNG file ``path``.

    Args:
        path: of the PNG file.
        rows: of volumes with their titles.
        title: of the picture.
        view: voxel size and convention of volumes in RAS, whose sides are then marked; None for any other volumes.
    """
    write_png(path, _montage(rows, title, view))


def montage(rows: Sequence[Sequence[Cell]], *, title: str = "", view: View | None = None) -> bytes:
    """Return the content of the file that :func:`write_montage` writes."""
    return png(_montage(rows, title, view))


def _montage(rows: Sequence[Sequence[Cell]], title: str, view: View | None) -> Figure:
    columns, shown = max(len(row) for row in rows), view or View()
    boxes = [_boxes(cell, shown) for row in rows for cell in row]
    width, height = max(box[-1][1] for box in boxes), max(max(b[3] for b in box) for box in boxes)
    head, foot = 0.4 if title else 0.1, 0.3 if view is not None else 0.1
    panel = _WIDTH * height / width + 0.28
    figure = Figure(
        figsize=(columns * _WIDTH, len(rows) * panel + head + foot), dpi=100, facecolor=BACKGROUND
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    total = figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=foot / total, top=1 - (head + 0.22) / total,
                           wspace=0.02, hspace=0.28 / (panel - 0.28))  # fmt: skip
    for line, row in zip(axes, rows, strict=True):
        for axis in line:
            frame(axis)
            axis.set_xlim(0, width)
            axis.set_ylim(0, height)
        for k, (axis, cell) in enumerate(zip(line, row, strict=False)):
            _draw(axis, cell, shown, height, marked=view is not None, bar=k == 0)
    if title:
        figure.text(0.01, 1 - 0.1 / total, title, color=INK, fontsize=11, va="top")
    if view is not None:
        words = f"Axial, coronal and sagittal planes. {view.words} {_WINDOW}"
        figure.text(0.01, 0.1 / total, words, color=QUIET, fontsize=8.5)
    return figure


def write_gallery(
    path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]], *, view: View, title: str = ""
) -> None:
    """Write one named row of middle axial slices for each list of volumes ``[H W D]`` in RAS and [0, 1].

    Args:
        path: of the PNG file.
        rows: names, and the volumes ``[H W D]`` of each.
        view: voxel size and convention.
        title: of the picture.
    """
    columns, first = max(len(volumes) for _, volumes in rows), rows[0][1][0]
    box = extent(first, "axial", view)
    wide, ratio = 16.0 / columns, box[3] / box[1]
    head, foot, gap = 0.45 if title else 0.1, 0.3, 0.26
    total = len(rows) * (wide * ratio + gap) + head + foot
    figure = Figure(figsize=(16, total), dpi=100, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(left=0.004, right=0.996, bottom=foot / total, top=1 - (head + gap) / total, wspace=0.02,
                           hspace=gap / (wide * ratio))  # fmt: skip
    for number, (line, (name, volumes)) in enumerate(zip(axes, rows, strict=True)):
        for axis in line:
            frame(axis)
        for k, (axis, volume) in enumerate(zip(line, volumes, strict=False)):
            image = cut(volume, "axial", volume.shape[2] // 2, view)
            axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, extent=box, interpolation="bilinear")
            axis.set_xlim(box[0], box[1])
            axis.set_ylim(box[2], box[3])
            if k == 0:
                mark(axis, "axial", box, view, bar=number == 0)
        line[0].set_title(name, fontsize=9.5, color=INK, loc="left", pad=3)
    if title:
        figure.text(0.004, 1 - 0.12 / total, title, color=INK, fontsize=11, va="top")
    words = f"Middle axial slices. {view.words} {_WINDOW}"
    figure.text(0.004, 0.1 / total, words, color=QUIET, fontsize=8.5)
    write_png(path, figure)


def _boxes(cell: Cell, view: View) -> list[tuple[float, float, float, float]]:
    """Return where the pictures of the three planes lie, side by side, in mm."""
    view = view if cell.spacing is None else replace(view, spacing=cell.spacing)
    boxes: list[tuple[float, float, float, float]] = []
    for plane in PLANES:
        boxes.append(extent(cell.volume, plane, view, boxes[-1][1] if boxes else 0.0))
    return boxes


def _draw(axis: Axes, cell: Cell, view: View, height: float, *, marked: bool, bar: bool) -> None:
    at = cell.at or widest_slices(None, cell.volume.shape)
    for plane, (left, right, _, top) in zip(PLANES, _boxes(cell, view), strict=True):
        lift = (height - top) / 2
        box = (left, right, lift, lift + top)
        image = cut(cell.volume, plane, at[plane], view)
        axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, extent=box, interpolation="bilinear")
        if marked:
            mark(axis, plane, box, view, bar=bar and plane == "axial")
    axis.set_title(cell.title, fontsize=9, color=INK, pad=3)
