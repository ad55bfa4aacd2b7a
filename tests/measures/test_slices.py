"""Slices as they are drawn: orientation, sides, and which slice."""

import numpy as np
import pytest

from prod9.measures.slices import PLANES, View, cut, sides, widest_slice, widest_slices


def test_superior_and_anterior_are_at_the_top_and_left_is_left():
    volume = np.zeros((4, 6, 8), dtype=np.float32)
    volume[0, 5, 7] = 1.0  # left, anterior, superior
    view = View()
    found = {plane: np.argwhere(cut(volume, plane, at, view)).tolist() for plane, at in
             (("axial", 7), ("coronal", 5), ("sagittal", 0))}  # fmt: skip
    assert found == {"axial": [[0, 0]], "coronal": [[0, 0]], "sagittal": [[0, 5]]}
    assert sides("axial", view) == ("L", "R", "A", "P")
    assert sides("coronal", view) == ("L", "R", "S", "I")
    assert sides("sagittal", view) == ("P", "A", "S", "I")


@pytest.mark.parametrize("plane", PLANES)
def test_the_radiological_convention_mirrors_left_and_right_alone(plane):
    volume = np.random.default_rng(0).random((4, 6, 8))
    ours, theirs = View(), View(radiological=True)
    picture, other = (cut(volume, plane, 2, view) for view in (ours, theirs))
    mirrored = plane != "sagittal"
    np.testing.assert_array_equal(other, np.fliplr(picture) if mirrored else picture)
    assert (sides(plane, ours)[:2] == sides(plane, theirs)[1::-1]) == mirrored
    assert ours.words != theirs.words


def test_the_slice_is_that_of_the_widest_lesion_or_the_middle_one():
    mask = np.zeros((6, 6, 9), dtype=np.uint8)
    mask[1, 1, 2] = 1
    mask[2:5, 2:5, 6] = 3
    assert widest_slice(mask, mask.shape) == 6
    assert widest_slices(mask, mask.shape)["axial"] == 6
    assert widest_slice(np.zeros_like(mask), mask.shape) == 4
    assert widest_slice(None, (6, 7, 9), "coronal") == 3
