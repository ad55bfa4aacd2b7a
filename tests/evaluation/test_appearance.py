import pytest
import torch

from prod9.evaluation.appearance import (
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
