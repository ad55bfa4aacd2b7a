"""Denoising against closed forms: identities of the bands, white noise, steps, shifts."""

import pytest
import torch

from prod9.measures.denoise import denoised
from prod9.measures.noise import noise_level

SIDES = (24, 28, 24)
HEAD = torch.zeros(1, 1, *SIDES, dtype=torch.bool)
HEAD[:, :, 3:-3, 3:-3, 3:-3] = True


def scan(level: float, *, step: float = 0.4) -> torch.Tensor:
    noise = level * torch.randn(1, 1, *SIDES, generator=torch.Generator().manual_seed(0))
    tissue = torch.where(torch.arange(SIDES[0]).view(1, 1, -1, 1, 1) < 12, 0.3, 0.3 + step)
    return torch.where(HEAD, tissue + noise, 0.0)


def test_without_a_threshold_the_bands_give_the_volume_back() -> None:
    volume = scan(0.05)
    torch.testing.assert_close(denoised(volume, HEAD, threshold=0.0), volume, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", [0.01, 0.03, 0.06])
def test_noise_goes_and_a_step_between_tissues_stays(level: float) -> None:
    clean, volume = scan(0.0), scan(level)
    found = denoised(volume, HEAD)
    assert noise_level(found, HEAD).item() < 0.1 * level
    inner = torch.zeros_like(HEAD)
    inner[:, :, 6:-6, 6:-6, 6:-6] = True
    assert (found - clean)[inner].std() < 0.4 * level
    before, after = found[:, :, 11][HEAD[:, :, 11]].mean(), found[:, :, 12][HEAD[:, :, 12]].mean()
    assert (after - before).item() == pytest.approx(0.4, abs=0.05)
    assert not found[~HEAD].any()


def test_it_moves_with_the_volume() -> None:
    volume = scan(0.03)
    moved = denoised(volume.roll(1, 3), HEAD.roll(1, 3), level=torch.tensor([0.03]))
    expected = denoised(volume, HEAD, level=torch.tensor([0.03])).roll(1, 3)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)
