"""Pictures for people: one slice per volume with its sides, scale, outlines and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prod9.html.labels import LABEL_COLOURS, LABEL_NAMES
from prod9.measures.slices import (
    BACKGROUND,
    INK,
    QUIET,
    Plane,
    View,
    cut,
    extent,
    frame,
    mark,
    write_png,
)

_OUTLINE = "#35d0e0"
_FILL = 0.55
_PANEL_INCHES = 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One volume of a figure.

    Attributes:
        title: above it.
        volume: ``[H W D]`` in RAS, 0 to 1.
        caption: below it, such as its scores.
        labels: canonical labels ``[H W D]`` to lay over it in colours, or None.
        outline: not 0 within a region ``[H W D]`` whose border is drawn over it, or None.
    """

    title: str
    volume: np.ndarray
    caption: str = ""
    labels: np.ndarray | None = None
    outline: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels side by side that show the same slice.

    Attributes:
        panels: from left to right.
        index: of the slice.
    """

    panels: Sequence[Panel]
    index: int


def write_figure(
    path: Path,
    rows: Sequence[Row],
    *,
    view: View,
    title: str = "",
    notes: Sequence[str] = (),
    plane: Plane = "axial",
    outline_name: str = "",
) -> None:
    """Write ``rows`` of slices to the PNG file ``path``; plane, sides, scale and window are part of the picture.

    Args:
        path: of the picture.
        rows: of panels; volumes of one row have one shape.
        view: voxel size and convention.
        title: above everything.
        notes: lines below everything, such as scores over all patients.
        plane: that is shown.
        outline_name: what an outline is, for the legend.
    """
    columns = max(len(row.panels) for row in rows)
    box = extent(rows[0].panels[0].volume, plane, view)
    ratio = (box[3] - box[2]) / (box[1] - box[0])
    below = [
        *notes,
        f"{plane.capitalize()} plane. {view.words} Window: 0 (black) to 1 (white) of each scan's range.",
    ]
    legend = _legend(rows, outline_name)
    head, foot = 0.45 if title else 0.1, 0.2 * len(below) + (0.3 if legend else 0.0) + 0.15
    height = len(rows) * (_PANEL_INCHES * ratio + 0.62) + head + foot
    figure = Figure(figsize=(columns * (_PANEL_INCHES + 0.08) + 0.2, height), dpi=110, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=0.1 / figure.get_figwidth(), right=1 - 0.1 / figure.get_figwidth(), wspace=0.03,
        bottom=(foot + 0.35) / height, top=1 - (head + 0.3) / height, hspace=0.62 / (_PANEL_INCHES * ratio),
    )  # fmt: skip
    for line, row in zip(axes, rows, strict=True):
        for axis in line:
            frame(axis)
        for k, (axis, panel) in enumerate(zip(line, row.panels, strict=False)):
            _draw(axis, panel, plane, row.index, view, bar=k == 0)
    if title:
        figure.text(0.1 / figure.get_figwidth(), 1 - 0.12 / height, title, color=INK, fontsize=12, va="top")
    for k, text in enumerate(reversed(below)):
        figure.text(0.1 / figure.get_figwidth(), (0.1 + 0.2 * k) / height, text, color=QUIET, fontsize=8.5)
    if legend:
        place = (0.05 / figure.get_figwidth(), (0.08 + 0.2 * len(below)) / height)
        figure.legend(handles=legend, loc="lower left", bbox_to_anchor=place, ncols=len(legend), frameon=False,
                      labelcolor=INK, fontsize=8.5, handlelength=1.2)  # fmt: skip
    write_png(path, figure)


def _draw(axis: Axes, panel: Panel, plane: Plane, index: int, view: View, *, bar: bool) -> None:
    box = extent(panel.volume, plane, view)
    image = cut(panel.volume, plane, index, view)
    axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, extent=box, interpolation="bilinear")
    if panel.labels is not None:
        axis.imshow(_coloured(cut(panel.labels, plane, index, view)), extent=box, interpolation="nearest")
    if panel.outline is not None:
        inside = np.pad(cut(panel.outline, plane, index, view) > 0, 1)
        if inside.any():
            rows, columns = inside.shape
            wide, high = (box[1] - box[0]) / (columns - 2), (box[3] - box[2]) / (rows - 2)
            x = box[0] + (np.arange(columns) - 0.5) * wide
            y = box[3] - (np.arange(rows) - 0.5) * high
            axis.contour(x, y, inside.astype(float), levels=[0.5], colors=[_OUTLINE], linewidths=1.3)
    axis.set_xlim(box[0], box[1])
    axis.set_ylim(box[2], box[3])
    mark(axis, plane, box, view, bar=bar)
    axis.set_title(panel.title, fontsize=9.5, color=INK, pad=4)
    if panel.caption:
        axis.set_xlabel(panel.caption, fontsize=9, color=INK, labelpad=4)


def _coloured(labels: np.ndarray) -> np.ndarray:
    """Return RGBA ``[h w 4]``, transparent where there is no label."""
    colours = np.zeros((*labels.shape, 4), dtype=np.float32)
    for label, colour in LABEL_COLOURS.items():
        colours[labels == label] = (*to_rgb(colour), _FILL)
    return colours


def _legend(rows: Sequence[Row], outline_name: str) -> list[Patch]:
    panels = [panel for row in rows for panel in row.panels]
    shown = set().union(*(np.unique(panel.labels).tolist() for panel in panels if panel.labels is not None))
    found = [
        Patch(facecolor=colour, label=LABEL_NAMES[k]) for k, colour in LABEL_COLOURS.items() if k in shown
    ]
    if outline_name and any(panel.outline is not None for panel in panels):
        found.append(Patch(facecolor="none", edgecolor=_OUTLINE, label=outline_name))
    return found
