import math

import pytest
import torch

from prod9.evaluation.paired import regional_scores, scale_by_target
from prod9.measures.metrics import PSNR_CAP, ms_ssim3d, ms_ssim_scales, ssim_window


def brain(side, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.zeros(1, 1, side, side, side)
    inner = (slice(None), slice(None), *[slice(1, -1)] * 3)
    volume[inner] = 100 + 900 * torch.rand((1, 1, *[side - 2] * 3), generator=generator)
    return volume


@pytest.mark.parametrize("side", [8, 28])
def test_identical_volumes(side):
    target = brain(side)
    seg = torch.zeros(target.shape, dtype=torch.int64)
    middle = slice(side // 2, side // 2 + 1)
    seg[..., middle, middle, middle] = 3
    for region, row in regional_scores(target.clone(), target, seg).items():
        assert row["psnr"] == row["psnr_brasyn"] == PSNR_CAP, region
        assert row["mae"] == 0.0
        assert row["ssim"] == pytest.approx(1.0, abs=1e-5)
        assert row["ms_ssim"] == pytest.approx(1.0, abs=1e-5)


def test_damage_counts_where_it_is():
    target = brain(20)
    seg = torch.zeros(target.shape, dtype=torch.int64)
    seg[..., 6:10, 6:10, 6:10] = 1
    made = torch.where(seg > 0, 0.0, target)
    scores = regional_scores(made, target, seg)
    assert scores["healthy"]["psnr"] == PSNR_CAP
    assert scores["healthy"]["mae"] == 0.0
    assert scores["tumour"]["psnr"] < scores["brain"]["psnr"] < scores["whole"]["psnr"] < PSNR_CAP


def test_a_case_without_tumour_has_no_tumour_score():
    target = brain(12)
    assert all(math.isnan(value) for value in regional_scores(target, target, None)["tumour"].values())


def test_constant_volumes_and_nan_are_defined():
    flat = torch.full((1, 1, 8, 8, 8), 5.0)
    row = regional_scores(flat, flat, None)["whole"]
    assert row["psnr"] == PSNR_CAP
    assert row["ssim"] == pytest.approx(1.0)
    broken = brain(8)
    broken[..., 3, 3, 3] = torch.nan
    row = regional_scores(broken, brain(8), None)["whole"]
    assert math.isnan(row["psnr"])
    assert math.isnan(row["mae"])


def test_the_scale_is_the_targets():
    target = brain(12)
    made, wanted = scale_by_target(0.5 * target, target, target[target > 0], (0.0, 1.0))
    assert wanted.min() == 0.0
    assert wanted.max() == 1.0
    assert made.max() < 0.5
    lpips = regional_scores(target, target, None, perceptual=lambda x, y: (x - y).abs().sum() + 0.25)
    assert lpips["brain"]["lpips"] == 0.25


@pytest.mark.parametrize(
    ("side", "scales", "window"), [(8, 1, 7), (28, 2, 11), (48, 3, 11), (144, 4, 11), (192, 5, 11)]
)
def test_scales_follow_from_the_sides(side, scales, window):
    assert (ms_ssim_scales((side, 200, 200)), ssim_window((side, 200, 200))) == (scales, window)


def test_ms_ssim_of_a_region():
    target = torch.rand(1, 1, 24, 24, 24)
    made = target.clone()
    made[..., :4] = torch.rand(1, 1, 24, 24, 4)
    left = torch.zeros(target.shape, dtype=torch.bool)
    left[..., :6] = True
    right = left.flip(4)
    assert ms_ssim3d(made, target, mask=right).item() == pytest.approx(1.0, abs=1e-5)
    assert ms_ssim3d(made, target, mask=left).item() < 0.9
    assert math.isnan(ms_ssim3d(made, target, mask=left & right).item())
