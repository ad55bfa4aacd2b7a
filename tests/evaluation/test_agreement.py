"""The same numbers as the libraries that compute the same thing, on 3D input."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from scipy import linalg, stats
from skimage.feature import graycomatrix, graycoprops
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.regression import mean_absolute_error as torchmetrics_mae
from torchmetrics.image.kid import poly_mmd

from prod9.evaluation.sets.appearance import BINS, LEVELS, _texture, histogram, histogram_distance, radiomics
from prod9.evaluation.sets.manifold import polynomial_kernel, squared_mmd
from prod9.measures.metrics import (
    frechet_distance,
    inception_score,
    mean_absolute_error,
    ms_ssim3d,
    psnr,
    ssim3d,
)
from prod9.measures.ssim import MS_SSIM_WEIGHTS, ms_ssim_scales

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 8, 8, 8, generator=generator), size=(46, 44, 45), mode="trilinear"
    )
    noise = 0.05 * torch.randn(smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 1), smooth


def test_psnr_and_mae(pair):
    made, target = pair
    expected = peak_signal_noise_ratio(target.numpy(), made.numpy(), data_range=1.0)
    assert psnr(made, target).item() == pytest.approx(expected, abs=TOLERANCE * 10)  # decibels
    assert mean_absolute_error(made, target).item() == pytest.approx(
        torchmetrics_mae(made, target).item(), abs=TOLERANCE
    )


def test_ssim(pair):
    made, target = pair
    ours = ssim3d(made, target).item()
    # torchmetrics averages over a padded border too, of which nothing is known.
    _, full = structural_similarity_index_measure(made, target, data_range=1.0, return_full_image=True)
    assert ours == pytest.approx(full[..., 5:-5, 5:-5, 5:-5].mean().item(), abs=TOLERANCE)
    skimage, whole = structural_similarity(
        target[0, 0].double().numpy(),
        made[0, 0].double().numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ours == pytest.approx(whole[5:-5, 5:-5, 5:-5].mean(), abs=TOLERANCE)
    assert skimage == pytest.approx(ours, abs=TOLERANCE)


def test_ms_ssim(pair):
    made, target = pair
    scales = ms_ssim_scales(made.shape[2:])
    assert scales == 3
    weights = np.asarray(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    metric = MultiScaleSSIMMetric(spatial_dims=3, data_range=1.0, kernel_size=11, weights=weights.tolist())
    theirs = metric(made, target)
    assert ms_ssim3d(made, target).item() == pytest.approx(theirs.item(), abs=TOLERANCE)


def test_frechet_distance():
    a, b = torch.randn(80, 12).double(), torch.randn(60, 12).double() * 1.5 + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = mean + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b).item() == pytest.approx(expected, abs=TOLERANCE)


def test_frechet_distance_of_known_gaussians():
    # Samples with exactly these moments: diagonal covariances have a closed form.
    a = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    scale = torch.tensor([1.0, 2.0, 3.0, 0.5]).double()
    b = a * scale + 1.0
    deviation = (2 / 7) ** 0.5
    expected = 4.0 + (deviation**2 * (scale - 1) ** 2).sum().item()
    assert frechet_distance(a, b).item() == pytest.approx(expected, abs=1e-10)


def test_kernel_distance():
    a, b = torch.randn(40, 9).double(), torch.randn(40, 9).double() + 0.5
    ours = squared_mmd(polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b))
    assert ours == pytest.approx(poly_mmd(a, b).item(), abs=TOLERANCE)


def test_inception_score():
    p = torch.softmax(torch.randn(50, 4), dim=1)
    expected = np.exp(np.mean([stats.entropy(row, p.mean(0).numpy()) for row in p.numpy()]))
    assert inception_score(p).item() == pytest.approx(expected, abs=TOLERANCE)


def test_histogram_distance():
    a, b = torch.rand(12, 12, 12), torch.rand(12, 12, 12) ** 2
    rows = [histogram(x)[None] for x in (a, b)]
    centres = (np.arange(BINS) + 0.5) / BINS
    expected = stats.wasserstein_distance(centres, centres, rows[0][0].numpy(), rows[1][0].numpy())
    assert histogram_distance(*rows) == pytest.approx(expected, abs=TOLERANCE)


def test_texture_of_one_slice():
    # A volume of equal slices has, along an axis in the plane, the co-occurrences of the slice.
    plane = torch.rand(20, 20) * 0.9 + 0.05
    grey = (plane * LEVELS).long().clamp_max(LEVELS - 1).numpy().astype(np.uint8)
    counts = graycomatrix(grey, [1], [0], levels=LEVELS, symmetric=True, normed=True)
    volume = plane[None].expand(4, 20, 20)
    ours = _texture(volume, volume > 0, [0, 0, 1])
    names = ("contrast", "dissimilarity", "homogeneity", "ASM", "correlation", "entropy")
    expected = [graycoprops(counts, name)[0, 0] for name in names]
    np.testing.assert_allclose(ours.numpy(), expected, atol=TOLERANCE)
    assert radiomics(volume).shape == (33,)
