import pytest
import torch

from prod9.evaluation.sets.appearance import (
    detail,
    histogram,
    histogram_distance,
    power_spectrum,
    radiomic_distance,
    radiomics,
    spectrum_distance,
)


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_volumes_give_finite_rows(side, value):
    volume = torch.full((side, side, side), value)
    for row in (histogram(volume), power_spectrum(volume), radiomics(volume)):
        assert row.isfinite().all()


def test_equal_sets_are_at_distance_zero():
    rows = torch.stack([radiomics(torch.rand(8, 8, 8)) for _ in range(6)])
    assert radiomic_distance(rows, rows) == pytest.approx(0.0, abs=1e-6)
    spectra = torch.stack([power_spectrum(torch.rand(8, 8, 8)) for _ in range(3)])
    assert spectrum_distance(spectra, spectra) == 0.0


def test_a_shift_of_all_intensities_is_the_histograms_distance():
    volume = torch.rand(20, 20, 20) * 0.5 + 0.1
    rows = [histogram(volume)[None], histogram(volume + 0.25)[None]]
    assert histogram_distance(*rows) == pytest.approx(0.25, abs=1e-3)


def test_gain_moves_the_spectrum_by_its_decibels():
    volume = torch.rand(16, 18, 20)
    rows = [power_spectrum(volume)[None], power_spectrum(0.5 * volume)[None]]
    assert spectrum_distance(*rows) == pytest.approx(20 * torch.log10(torch.tensor(2.0)).item(), abs=1e-3)


def test_a_wave_stands_out_at_its_frequency():
    x = torch.arange(32.0)
    wave = torch.sin(2 * torch.pi * x / 4)[:, None, None].expand(32, 32, 32)
    # A quarter of a cycle a voxel is half of the Nyquist frequency.
    assert power_spectrum(wave).argmax().item() == 16


def brain_of(side, noise, blur=0):
    generator = torch.Generator().manual_seed(0)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 3, indexing="ij")
    radius = torch.stack([a.square() for a in axes]).sum(0).sqrt()
    volume = torch.where(radius < 0.5, 0.8, 0.4) * (radius < 0.9)
    for _ in range(blur):
        volume = torch.nn.functional.avg_pool3d(volume[None, None], 3, stride=1, padding=1)[0, 0]
    noisy = volume + noise * torch.randn(volume.shape, generator=generator)
    return torch.where(radius < 0.9, noisy.clamp(0.05, 1.0), 0.0)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_the_noise_level_is_the_deviation_of_the_noise(noise):
    level, _ = detail(brain_of(40, noise)).tolist()
    assert level == pytest.approx(noise, rel=0.15)


def test_blur_takes_edges_and_noise_brings_few():
    sharp, soft, noisy = (detail(brain_of(40, n, blur)) for n, blur in ((0.005, 0), (0.005, 3), (0.05, 0)))
    assert soft[1] < 0.8 * sharp[1]
    assert noisy[0] > 5 * sharp[0]
    assert noisy[1] < 2 * sharp[1]
    assert detail(torch.zeros(6, 6, 6)).tolist() == [0.0, 0.0]
    assert detail(torch.full((2, 2, 2), 0.5)).tolist() == [0.0, 0.0]
