import pytest
import torch

from prod9.evaluation.paired import paired_scores, psnr_brain, ssim_brain


def test_scores_look_inside_the_brain(held_out):
    target = held_out[0][:3]
    brain = target > 0
    outside_wrong = torch.where(brain, target, target + 0.5)
    assert (psnr_brain(outside_wrong, target) == 100.0).all()
    assert (psnr_brain(torch.where(brain, target + 0.1, target), target) - 20.0).abs().max() < 1e-3
    noisy = target + 0.1 * torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) * brain
    scores = paired_scores(noisy, target)
    assert scores["psnr"] > scores["psnr_brain"]
    assert scores["ssim"] > scores["ssim_brain"]
    assert scores["mae"] < scores["mae_brain"]
    assert scores["ssim_brain"] == pytest.approx(ssim_brain(noisy, target).mean().item())


def test_an_empty_volume_does_not_spoil_the_mean(held_out):
    target = torch.cat([held_out[0][:2], torch.zeros_like(held_out[0][:1])])
    scores = paired_scores(target * 0.9, target)
    assert scores["psnr_brain"] == pytest.approx(paired_scores(target[:2] * 0.9, target[:2])["psnr_brain"])
