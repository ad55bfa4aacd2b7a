"""Figures of single slices: what is marked, and where outlines lie."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from prod9.measures import figures
from prod9.measures.figures import Panel, Row, write_figure
from prod9.measures.slices import View


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that are written."""
    kept: list[Figure] = []
    write = figures.write_png

    def keep(path, figure):
        kept.append(figure)
        write(path, figure)

    monkeypatch.setattr(figures, "write_png", keep)
    return kept


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_xlabel(), *(text.get_text() for text in axis.texts)]
    return found


def test_plane_sides_scale_window_and_scores_are_in_the_picture(tmp_path, drawn):
    volume = np.random.default_rng(0).random((20, 24, 6), dtype=np.float32)
    seg = np.zeros(volume.shape, dtype=np.uint8)
    seg[4:8, 5:9, 3] = 3
    panels = [
        Panel(title="given", volume=volume, labels=seg),
        Panel(title="made", volume=volume, outline=seg, caption="Dice 0.71"),
    ]
    path = tmp_path / "pictures" / "control.png"
    write_figure(path, [Row(panels=panels, index=3)], view=View(spacing=(4.0, 4.0, 4.0)), title="A tumour",
                 notes=["Simulated patients."], outline_name="what was asked for")  # fmt: skip
    assert imread(path).std() > 0.05
    (figure,) = drawn
    found = texts(figure)
    for text in ("L", "R", "A", "P", "20 mm", "A tumour", "Simulated patients.", "Dice 0.71"):
        assert text in found
    assert any("Axial plane" in t and "left is on the left" in t and "Window" in t for t in found)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["enhancing tumour", "what was asked for"]


def test_the_outline_runs_around_the_region_in_mm(tmp_path, drawn):
    volume, seg = np.zeros((10, 10, 4), dtype=np.float32), np.zeros((10, 10, 4), dtype=np.uint8)
    seg[2:5, 6:9, 1] = 1
    for radiological in (False, True):
        view = View(spacing=(2.0, 3.0, 1.0), radiological=radiological)
        write_figure(
            tmp_path / "x.png",
            [Row(panels=[Panel(title="", volume=volume, outline=seg)], index=1)],
            view=view,
        )
        path = drawn[-1].axes[0].collections[0].get_paths()[0]
        low, high = path.vertices.min(0), path.vertices.max(0)
        # Voxels 2 to 5 of 10 of 2 mm each, from the left or from the right, and 6 to 9 of 3 mm from posterior.
        expected = ((10.0, 18.0), (16.0, 27.0)) if radiological else ((4.0, 18.0), (10.0, 27.0))
        np.testing.assert_allclose([low, high], expected, atol=1e-6)
