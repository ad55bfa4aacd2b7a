"""PSNR, SSIM, LPIPS, Fréchet distance and others against closed forms and peers."""

import math

import pytest
import torch
from monai.metrics.regression import SSIMMetric
from torchmetrics.functional.image import structural_similarity_index_measure

from prod9.measures.metrics import (
    PSNR_CAP,
    CombinedMetric,
    codebook_usage,
    fit_intensities,
    foreground,
    frechet_distance,
    inception_score,
    level_histogram,
    level_usage,
    perplexity,
    psnr,
    ssim3d,
    token_histogram,
)


def _pair(*shape):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator)
    return (target + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1), target


def test_psnr_of_a_constant_error():
    target = torch.zeros(2, 1, 4, 4, 4)
    pred = torch.stack([target[0] + 0.1, target[1] + 0.01])
    torch.testing.assert_close(psnr(pred, target), torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(psnr(pred, target, data_range=10.0), torch.tensor([40.0, 60.0]))


def test_psnr_of_identical_volumes_is_finite():
    x = torch.rand(1, 1, 4, 4, 4)
    assert psnr(x, x).item() == PSNR_CAP


def test_psnr_counts_the_mask_only():
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., :2] = 0.5
    pred = torch.where(foreground(target), target + 0.1, target + 0.9)
    assert psnr(pred, target, mask=foreground(target)).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(pred, target, mask=torch.zeros_like(target, dtype=torch.bool)).isnan().all()


def test_ssim_of_identical_volumes_is_one():
    x, _ = _pair(2, 1, 12, 13, 14)
    torch.testing.assert_close(ssim3d(x, x), torch.ones(2))


def test_ssim_agrees_with_monai():
    pred, target = _pair(2, 1, 16, 15, 14)
    theirs = SSIMMetric(spatial_dims=3, data_range=1.0)(pred, target).flatten()
    torch.testing.assert_close(ssim3d(pred, target), theirs, atol=1e-5, rtol=0)


def test_ssim_agrees_with_torchmetrics():
    pred, target = _pair(2, 1, 16, 16, 16)
    _, full = structural_similarity_index_measure(pred, target, data_range=1.0, return_full_image=True)
    theirs = full[..., 5:-5, 5:-5, 5:-5].flatten(1).mean(1)  # without the padded border
    torch.testing.assert_close(ssim3d(pred, target), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "window"), [(5, 5), (6, 5), (10, 9), (1, 1)])
def test_ssim_shrinks_the_window(side, window):
    pred, target = _pair(1, 1, side, 12, 12)
    torch.testing.assert_close(ssim3d(pred, target), ssim3d(pred, target, window=window))


def test_masked_ssim_ignores_the_background():
    pred, target = _pair(1, 1, 24, 24, 24)
    pred[..., :12], target[..., :12] = 0.0, 0.0
    deep = torch.zeros_like(target, dtype=torch.bool)
    deep[..., 18:] = True  # windows that see no background
    alone = ssim3d(pred[..., 13:], target[..., 13:])
    assert ssim3d(pred, target) > ssim3d(pred, target, mask=deep) + 0.02
    torch.testing.assert_close(ssim3d(pred, target, mask=deep), alone)


def test_combined_metric_is_a_weighted_mean():
    metrics = {"psnr": torch.tensor(20.0), "ssim": torch.tensor(0.8), "lpips": torch.tensor(0.4)}
    assert CombinedMetric(psnr=1.0, ssim=1.0, lpips=0.0)(metrics).item() == pytest.approx(0.65)
    with_lpips = CombinedMetric(psnr=1.0, ssim=1.0, lpips=2.0)
    assert with_lpips(metrics).item() == pytest.approx((0.5 + 0.8 + 1.2) / 4)
    with pytest.raises(ValueError, match="lpips"):
        with_lpips({"psnr": torch.tensor(1.0), "ssim": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="not all 0"):
        CombinedMetric(psnr=0.0, ssim=0.0, lpips=0.0)


def test_codebook_statistics():
    levels = (3, 2)
    tokens = torch.tensor([0, 0, 3, 3]).view(1, 1, 2, 2)  # digits (0, 0) and (0, 1): first channel fastest
    histogram = token_histogram(tokens, 6)
    assert histogram.tolist() == [2, 0, 0, 2, 0, 0]
    assert codebook_usage(histogram).item() == pytest.approx(2 / 6)
    assert perplexity(histogram).item() == pytest.approx(2.0)
    torch.testing.assert_close(
        level_usage(level_histogram(tokens, levels), levels), torch.tensor([1 / 3, 1.0])
    )


def test_frechet_of_shifted_gaussians_is_the_squared_shift():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, 4.0, 0, 0, 0, 0])
    assert frechet_distance(x, x).item() == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(x, x + shift).item() == pytest.approx(25.0, rel=1e-5)
    # Scaling by s moves every standard deviation from σ to sσ: Σ σ² (s − 1)².
    trace = (x - x.mean(0)).square().sum().item() / 499
    expected = trace + (x.mean(0).square().sum()).item()
    assert frechet_distance(x, 2 * x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sizes", [(40, 50, 8), (10, 12, 30), (6, 50, 20)])
def test_frechet_equals_the_matrix_square_root(sizes):
    n, m, d = sizes
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = torch.randn(m, d, generator=generator, dtype=torch.float64) * 1.5 + 0.2
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # tr (A B)^½ is the sum of the square roots of the eigenvalues of A B, which are real and ≥ 0.
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
    assert frechet_distance(a.float(), b.float()).item() == pytest.approx(expected.item(), rel=1e-4)


def test_frechet_refuses_single_samples():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(torch.rand(1, 3), torch.rand(5, 3))


def test_inception_score_limits():
    assert inception_score(torch.full((10, 4), 0.25)).item() == pytest.approx(1.0)
    assert inception_score(torch.eye(4).repeat(3, 1)).item() == pytest.approx(4.0)
    # exp of the mean, not the mean of exp: two certain samples of one class, two undecided ones.
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    kl_certain = math.log(1 / 0.75)
    kl_open = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert inception_score(p).item() == pytest.approx(math.exp((kl_certain + kl_open) / 2), rel=1e-6)


def test_fitting_intensities_undoes_any_affine_map():
    target = torch.rand(2, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    target[:, :, 0] = 0.0
    mask = foreground(target)
    mapped = torch.stack([0.3 * target[0] + 0.4, 2.0 - target[1]])
    torch.testing.assert_close(
        torch.where(mask, fit_intensities(mapped, target, mask=mask), 0.0), target, atol=1e-5, rtol=0
    )


def test_a_fit_never_hurts_and_a_constant_becomes_the_mean():
    generator = torch.Generator().manual_seed(1)
    target, pred = (torch.rand(3, 1, 6, 6, 6, generator=generator) for _ in range(2))
    mask = torch.rand(3, 1, 6, 6, 6, generator=generator) < 0.7
    fitted = fit_intensities(pred, target, mask=mask)
    assert (psnr(fitted, target, mask=mask) > psnr(pred, target, mask=mask)).all()
    # A second fit finds nothing left to do.
    torch.testing.assert_close(fit_intensities(fitted, target, mask=mask), fitted, atol=1e-5, rtol=0)
    flat = fit_intensities(torch.full_like(pred, 0.2), target, mask=mask)
    torch.testing.assert_close(flat[0].flatten()[0], target[0][mask[0]].mean())
