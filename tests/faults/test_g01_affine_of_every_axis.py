"""The affine augmentation turned volumes about one axis alone and stretched them along that axis, not all three."""

import itertools

import numpy as np
import torch
from monai.transforms.utils import create_rotate, create_scale

from prod9.data.intensity import IntensityScaling
from prod9.data.transforms import Augmentation, TransformBuilder

CROP = (32, 64, 128)


def augmentation():
    return Augmentation(flip_prob=0, bias_field_prob=0, gamma_prob=0, scale_prob=0, affine_prob=1)


def test_a_bar_along_any_axis_is_moved():
    (affine,) = augmentation().build_affine()
    moved = []
    for axis in range(3):
        # Only a turn about one of the other two axes, or a zoom along its own, changes such a bar.
        bar = torch.zeros(1, 25, 25, 25)
        bar[(0, *(slice(2, 23) if k == axis else slice(11, 14) for k in range(3)))] = 1
        along = tuple(1 + k for k in range(3) if k != axis)
        lengths = []
        for seed in range(6):
            affine.set_random_state(seed)
            lengths.append(float(affine({"image": bar})["image"].amax(along).sum()))
        moved.append(np.ptp(lengths))
    assert min(moved) > 1, moved


def test_the_room_around_a_crop_holds_every_turn():
    builder = TransformBuilder(
        spacing=None,
        grid=(128, 128, 128),
        crop_size=CROP,
        intensity=IntensityScaling("range", 0, 1),
        augment=augmentation(),
    )
    room = builder.build_stage1_transforms(train=True).read_size
    assert room is not None
    for turn in itertools.product((-0.1, 0.1), repeat=3):
        matrix = (create_scale(3, [1.1] * 3) @ create_rotate(3, turn))[:3, :3]
        for ends in itertools.product((-1, 1), repeat=3):
            corner = np.asarray(matrix) @ (np.asarray(ends) * (np.asarray(CROP) - 1) / 2)
            assert (np.abs(corner) <= (np.asarray(room) - 1) / 2).all(), (turn, room)
