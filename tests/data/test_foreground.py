"""Otsu's threshold against its definition, and the masks that stand in for segmentations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prod9.data.datasets.medmnist import MedMNIST3DVolumes
from prod9.data.foreground import ForegroundMasks, foreground_of_image
from prod9.data.intensity import otsu_threshold


def within(image: np.ndarray, threshold: int) -> float:
    """The sum of squared distances to the means of both sides."""
    sides = image[image <= threshold].astype(float), image[image > threshold].astype(float)
    return sum(float(((side - side.mean()) ** 2).sum()) for side in sides if side.size)


@given(hnp.arrays(np.uint8, st.integers(2, 40)))
def test_no_threshold_leaves_less_variance(image: np.ndarray) -> None:
    found = otsu_threshold(image)
    best = min(within(image, t) for t in range(256))
    assert within(image, found) == pytest.approx(best, rel=1e-6, abs=1e-6)


def test_two_heaps_are_told_apart() -> None:
    image = np.array([3, 4, 5, 200, 201, 202], dtype=np.uint8)
    assert 5 <= otsu_threshold(image) < 200
    assert foreground_of_image(image).tolist() == [False] * 3 + [True] * 3


def test_masks_lie_on_the_grid_where_the_samples_lie() -> None:
    images = np.zeros((3, 4, 4, 4), dtype=np.uint8)
    images[0, 1:3, 1:3, 1:3] = 200
    images[0, 0, 0, 0] = 60
    images[2] = 9
    volumes = MedMNIST3DVolumes(images, np.zeros(3, np.int64), ["a", "b", "c"], ["x"], (6, 6, 6))
    masks = ForegroundMasks(volumes, is_shape=False)
    assert masks.num_segmented == 1
    assert [masks.has(name) for name in "abc"] == [True, False, False]
    assert masks["a"].dtype == torch.uint8
    assert masks["a"].nonzero().amin(0).tolist() == [2, 2, 2]
    assert int(masks["a"].sum()) == 8
    assert not masks["b"].any()
    shape = ForegroundMasks(volumes, is_shape=True)
    assert int(shape["a"].sum()) == 9, "the shape itself, however faint"
    assert shape.num_segmented == 2
