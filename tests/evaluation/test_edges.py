"""Sharpness of tissue borders: closed form for blurred steps, blind to contrast, not to be pleased by grain."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from prod9.evaluation.sets.denoised import free_of_noise, noise_of
from prod9.evaluation.sets.edges import COARSE, FINE, border_sharpness

SIDE = 40
FINEST = FINE**2 + 1 / 3
"""Variance of the finest window: its Gaussian, and a box of two voxels."""


def white(seed: int) -> torch.Tensor:
    return torch.randn(SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def blurred(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(volume.numpy(), sigma)) if sigma else volume


def step(normal: tuple[float, float, float], sigma: float) -> torch.Tensor:
    """Return a plane step from 0.2 to 0.8 through the centre, blurred by a Gaussian of ``sigma`` voxels."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    grids = torch.meshgrid(axis, axis, axis, indexing="ij")
    length = math.sqrt(sum(n * n for n in normal))
    distance = sum(n / length * grid for n, grid in zip(normal, grids, strict=True))
    return 0.5 + 0.3 * torch.erf(distance / (sigma * math.sqrt(2)))


def brain(*, seed: int = 0, blur: float = 0.0, noise: float = 0.0) -> torch.Tensor:
    """Return a ball with darker and brighter balls in it."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 3, indexing="ij")
    radius = torch.stack([a.square() for a in axes]).sum(0).sqrt()
    volume = torch.full_like(radius, 0.5)
    for k in range(6):
        centre, size = (
            torch.rand(3, generator=generator) - 0.5,
            0.15 + 0.15 * torch.rand((), generator=generator),
        )
        away = torch.stack([(a - c).square() for a, c in zip(axes, centre, strict=True)]).sum(0).sqrt()
        volume = torch.where(away < size, 0.5 + 0.25 * (-1) ** k, volume)
    volume = blurred(volume, blur) + noise * white(seed + 7)
    return torch.where(radius < 0.9, volume.clamp(0.05, 1.0), 0.0)


@settings(deadline=None, max_examples=15)
@given(
    normal=st.tuples(*[st.floats(-1.0, 1.0)] * 3).filter(lambda n: max(map(abs, n)) > 0.2),
    sigma=st.floats(0.8, 3.0),
    height=st.floats(0.05, 3.0),
)
def test_the_width_of_a_blurred_step(normal: tuple[float, float, float], sigma: float, height: float) -> None:
    everywhere = torch.ones(SIDE, SIDE, SIDE, dtype=torch.bool)
    found = border_sharpness(height * step(normal, sigma), everywhere).item()
    assert found == pytest.approx(1 / math.sqrt(FINEST + sigma**2), rel=0.12)


def test_blur_lowers_and_sharpening_raises_it() -> None:
    values = [border_sharpness(brain(blur=sigma)).item() for sigma in (0.0, 0.7, 1.0, 1.5, 2.5)]
    assert values == sorted(values, reverse=True)
    assert values[2] < 0.75 * values[0]
    soft = brain(blur=1.0)
    sharpened = torch.where(soft > 0, (2 * soft - blurred(soft, 1.0)).clamp(0.05, 1.0), 0.0)
    assert border_sharpness(sharpened).item() > 1.05 * border_sharpness(soft).item()


def test_contrast_does_not_count() -> None:
    volume = brain(blur=1.0)
    flat = torch.where(volume > 0, 0.5 + 0.2 * (volume - 0.5), 0.0)
    assert border_sharpness(flat).item() == pytest.approx(border_sharpness(volume).item(), rel=0.02)


@settings(deadline=None, max_examples=12)
@given(blur=st.sampled_from([0.0, 0.7, 1.0, 1.5]), noise=st.floats(0.01, 0.1), seed=st.integers(0, 99))
def test_noise_does_not_raise_it_after_denoising(blur: float, noise: float, seed: int) -> None:
    level = 0.03
    clean, noisy = brain(seed=seed, blur=blur), brain(seed=seed, blur=blur, noise=noise)
    found = border_sharpness(free_of_noise(noisy, level)).item()
    assert found < 1.1 * border_sharpness(free_of_noise(clean, level)).item()
    assert noise_of(free_of_noise(noisy, level)).item() < 0.1 * noise


def test_grain_is_removed_and_borders_stay() -> None:
    clean, noisy = brain(), brain(noise=0.03)
    inside = clean > 0
    freed = free_of_noise(noisy, 0.03)
    error = (freed - clean)[inside].square().mean().sqrt().item()
    assert error < 0.5 * (noisy - clean)[inside].square().mean().sqrt().item()
    assert border_sharpness(freed).item() > 0.9 * border_sharpness(clean).item()
    assert torch.equal(free_of_noise(clean, 0.0), clean)


def test_volumes_without_borders() -> None:
    for volume in (torch.zeros(8, 8, 8), torch.full((8, 8, 8), 0.5), torch.rand(2, 8, 8)):
        assert border_sharpness(volume).item() == 0.0
        assert free_of_noise(volume, 0.03).isfinite().all()
    assert COARSE > FINE
