"""Preprocessing with ``--no-strip`` gave heads without a skull a halo, and a border that was mixed with the background.

Cubic interpolation swings to both sides of a step, for some ten voxels: all that was above 0 counted as head.
"""

import numpy as np

from prod9.data.intensity import find_background
from prod9.data.registration.case import moved_scan
from prod9.data.registration.geometry import Placed

SHAPE = (48, 48, 48)
PLACE = np.diag([1.0, 1.0, 1.0, 1.0])


def ball(radius, side=48):
    axes = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij"))
    return np.sqrt((axes**2).sum(0)) < radius


def turned(angle=0.3, shift=0.4):
    """Return a turn about the middle of the grid, and a shift by a part of a voxel."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = np.full(3, 23.5)
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + shift
    return matrix


def test_a_head_without_a_skull_keeps_its_size_and_its_range():
    inside = ball(14)
    scan = np.where(inside, np.random.default_rng(0).uniform(300, 500, SHAPE), 0).astype(np.float32)
    moved = moved_scan(Placed(scan, PLACE), SHAPE, PLACE, turned(), brain=None)
    head = ~find_background(moved).covers(moved)
    assert abs(head.sum() / inside.sum() - 1) < 0.05
    # No voxel of the head is darker than the noise makes it: before, the darkest were near 0.
    assert moved[head].min() > 200


def test_a_mask_that_is_given_decides_alone():
    scan = np.where(ball(20), 400, 0).astype(np.float32)
    scan[24, 24, 24] = 0
    brain = ball(12)
    moved = moved_scan(Placed(scan, PLACE), SHAPE, PLACE, np.eye(4), brain=brain)
    np.testing.assert_array_equal(moved > 0, brain)


def test_noise_around_a_head_stays():
    noise = np.abs(np.random.default_rng(0).normal(20, 5, SHAPE)).astype(np.float32) + 1
    scan = np.where(ball(14), 400, noise).astype(np.float32)
    moved = moved_scan(Placed(scan, PLACE), SHAPE, PLACE, np.eye(4), brain=None)
    np.testing.assert_allclose(moved, scan, atol=1e-2)
