"""Pictures of many volumes."""

import numpy as np
import pytest
from matplotlib.image import imread

from prod9.measures.montage import Cell, montage, write_gallery, write_montage
from prod9.measures.slices import View

SIDES = View(spacing=(4.0, 4.0, 4.0))


@pytest.mark.parametrize("view", [None, SIDES])
def test_write_montage_makes_one_picture_of_uneven_rows(tmp_path, view):
    volume = np.random.default_rng(0).random((6, 7, 5), dtype=np.float32)
    path = tmp_path / "samples" / "step-000001.png"
    rows = [[Cell("real", volume), Cell("rebuilt", volume)], [Cell("sampled", volume)]]
    write_montage(path, rows, title="step 1", view=view)

    picture = imread(path)
    assert picture.ndim == 3
    assert picture[..., :3].std() > 0.05
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_montage_shows_the_slices_that_are_named(tmp_path):
    volume = np.zeros((8, 8, 8), dtype=np.float32)
    volume[:, :, 6] = 1.0
    dark, bright = (
        montage([[Cell("", volume, at)]]) for at in (None, {"axial": 6, "coronal": 0, "sagittal": 0})
    )
    (tmp_path / "dark.png").write_bytes(dark)
    (tmp_path / "bright.png").write_bytes(bright)
    assert imread(tmp_path / "bright.png").mean() > imread(tmp_path / "dark.png").mean() + 0.1


def test_a_gallery_has_a_row_for_each_name(tmp_path):
    volumes = [np.full((6, 6, 4), value, dtype=np.float32) for value in (0.2, 0.9)]
    write_gallery(tmp_path / "gallery.png", [("T1", volumes), ("T2", volumes[:1])], view=SIDES, title="All")
    assert imread(tmp_path / "gallery.png")[..., :3].max() > 0.8
