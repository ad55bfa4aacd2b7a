"""Paired scores inside the brain."""

import torch

from prod9.evaluation.paired import psnr_brain, ssim_brain
from prod9.measures.metrics import psnr, ssim3d


def test_scores_look_inside_the_brain(held_out):
    target = held_out[0][:3]
    brain = target > 0
    outside_wrong = torch.where(brain, target, target + 0.5)
    assert (psnr_brain(outside_wrong, target) == 100.0).all()
    assert (psnr_brain(torch.where(brain, target + 0.1, target), target) - 20.0).abs().max() < 1e-3
    noisy = target + 0.1 * torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) * brain
    assert (psnr(noisy, target) > psnr_brain(noisy, target)).all()
    assert (ssim3d(noisy, target) > ssim_brain(noisy, target)).all()


def test_an_empty_volume_has_no_score(held_out):
    target = torch.cat([held_out[0][:2], torch.zeros_like(held_out[0][:1])])
    scores = psnr_brain(target * 0.9, target)
    assert scores.isnan().tolist() == [False, False, True]
    assert torch.equal(scores[:2], psnr_brain(target[:2] * 0.9, target[:2]))
