import math

import pytest
import torch

from prod9.evaluation.judges.segmenter import Segmenter
from prod9.evaluation.translation import (
    BOTH,
    SOURCES,
    TOKENS,
    Translations,
    TranslationSet,
    dice_drop,
    paired_row,
    score_translation,
    uncertainty_correlation,
)


def patients(count, *, seed, tumour=True, side=16):
    """Targets are a planted linear map of two sources; a cube of each brain is tumour."""
    generator = torch.Generator().manual_seed(seed)
    sources = 0.1 + 0.8 * torch.rand(count, 2, side, side, side, generator=generator)
    sources[:, :, :4] = 0.0
    targets = 0.3 * sources[:, :1] + 0.4 * sources[:, 1:] + 0.1
    targets[:, :, :4] = 0.0
    tumours = torch.zeros(count, 1, side, side, side, dtype=torch.bool)
    tumours[:, :, 8:12, 4:8, 4:8] = tumour
    return TranslationSet(sources, targets, tumours)


class Threshold(torch.nn.Module):
    def forward(self, x):
        return x - 0.5


def test_all_keys_are_there_and_baselines_are_fitted_on_training_patients():
    training, held_out = patients(3, seed=0), patients(2, seed=1)
    noise = torch.rand(held_out.targets.shape, generator=torch.Generator().manual_seed(2))
    rows = {
        TOKENS: 0.5 * noise,
        SOURCES: held_out.targets.clamp_max(0.6),
        BOTH: held_out.targets * 0.5 + 0.2,
    }
    made = Translations(rows, deviation=noise, sampled_mean=rows[TOKENS])
    scores = score_translation(training, held_out, made, segmenter=Segmenter(Threshold()))
    wanted = {
        "psnr_brain",
        "ssim_brain",
        "ssim_tumour",
        "copy_psnr_brain",
        "regression_psnr_brain",
        "dice_drop",
    }
    assert wanted <= scores.keys()
    assert set(scores["rows"]) == {TOKENS, SOURCES, BOTH}
    assert all(math.isfinite(value) for value in scores.values() if isinstance(value, float))
    assert scores["regression_psnr_brain"] > 60  # the map is linear
    assert scores["psnr_brain_fitted"] > 60 > scores["psnr_brain"]  # affine in the target
    assert scores["psnr_brain"] == scores["rows"][BOTH]["psnr_brain"]
    assert scores["copy_psnr_brain_fitted"] < scores["regression_psnr_brain_fitted"]


def test_the_tumour_is_fitted_with_the_brain():
    held_out = patients(2, seed=3)
    faint = torch.where(held_out.tumours, held_out.targets * 0.5, held_out.targets)
    row = paired_row(faint, held_out)
    assert row["psnr_tumour_fitted"] < row["psnr_brain_fitted"]
    assert row["ssim_tumour"] < row["ssim_brain"] < 1


def test_scores_of_tumours_need_one():
    row = paired_row(patients(1, seed=4).targets, patients(1, seed=4, tumour=False))
    assert set(row) == {"psnr_brain", "psnr_brain_fitted", "ssim_brain", "ssim_brain_fitted"}


def test_uncertainty_that_is_the_error_correlates_fully():
    held_out = patients(2, seed=5)
    error = torch.rand(held_out.targets.shape, generator=torch.Generator().manual_seed(6)) - 0.5
    mean = held_out.targets + error
    assert uncertainty_correlation(mean, error.abs(), held_out.targets) == pytest.approx(1.0)
    assert uncertainty_correlation(mean, 1 - error.abs(), held_out.targets) == pytest.approx(-1.0)
    other = torch.rand(error.shape, generator=torch.Generator().manual_seed(7))
    assert abs(uncertainty_correlation(mean, other, held_out.targets)) < 0.1
    assert math.isnan(uncertainty_correlation(mean, torch.zeros_like(error), held_out.targets))


def test_dice_drops_by_what_is_painted_over():
    held_out = patients(2, seed=8)
    real = torch.where(held_out.tumours, 0.9, held_out.targets.clamp_max(0.4))
    seen = TranslationSet(held_out.sources, real, held_out.tumours)
    half = real.clone()
    half[:, :, 8:10] = half[:, :, 8:10].clamp_max(0.4)
    scores = dice_drop(Segmenter(Threshold()), half, seen)
    assert scores["dice_real"] == pytest.approx(1.0)
    assert scores["dice_translated"] == pytest.approx(2 / 3)
    assert scores["dice_drop"] == pytest.approx(1 / 3)
