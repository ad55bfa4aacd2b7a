"""The noise level against closed forms: white noise, smooth volumes, scaling, masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prod9.measures import noise
from prod9.measures.noise import noise_level

EVERYWHERE = torch.ones(24, 24, 24, dtype=torch.bool)


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ball(side: int = 24) -> torch.Tensor:
    axis = torch.arange(side) - (side - 1) / 2
    radius = (axis[:, None, None].square() + axis[:, None].square() + axis.square()).sqrt()
    return radius < side / 2 - 2


@settings(deadline=None, max_examples=20)
@given(level=st.floats(0.001, 0.2), seed=st.integers(0, 1000))
def test_white_noise_has_its_standard_deviation(level: float, seed: int) -> None:
    found = noise_level(level * white(24, 24, 24, seed=seed), EVERYWHERE)
    assert found.item() == pytest.approx(level, rel=0.12)


@settings(deadline=None, max_examples=20)
@given(
    slopes=st.tuples(*[st.floats(-1.0, 1.0)] * 6),
    factor=st.floats(0.1, 10.0),
    offset=st.floats(-1.0, 1.0),
)
def test_ramps_and_products_of_two_axes_are_no_noise(
    slopes: tuple[float, ...], factor: float, offset: float
) -> None:
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij")
    a, b, c, d, e, f = slopes
    smooth = a * x + b * y + c * z + d * x * y + e * y * z.square() + f * x.square()
    grain = 0.05 * white(24, 24, 24)
    assert noise_level(smooth, EVERYWHERE).item() < 1e-6
    both = noise_level(grain + smooth, EVERYWHERE).item()
    assert both == pytest.approx(0.05, rel=0.12)
    scaled = noise_level(factor * (grain + smooth) + offset, EVERYWHERE).item()
    assert scaled == pytest.approx(factor * both, rel=1e-3)


@pytest.mark.parametrize("level", [0.01, 0.02, 0.04])
def test_anatomy_in_coarse_voxels_is_no_noise(level: float) -> None:
    """Folds about a voxel thick in half of the head, as the cortex has at 3.75 mm, and flat tissue in the rest."""
    axis = torch.arange(48)
    folds = ((axis[:, None, None] + axis[:, None] + axis) // 2 % 2) * 0.4
    tissue = torch.where(axis[:, None, None] < 24, folds, 0.5)
    found = noise_level(tissue + level * white(48, 48, 48), torch.ones(48, 48, 48, dtype=torch.bool))
    assert found.item() == pytest.approx(level, rel=0.1)


def test_both_ways_to_choose_cells_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    energy, where = white(9, 8, 7).abs(), white(9, 8, 7, seed=1) > 0
    monkeypatch.setattr(noise, "FEWEST", 20)
    chosen = noise._flattest(energy, where)
    assert chosen.sum() == 20
    assert torch.equal(noise._flattest_by_order(energy, where), chosen)
    assert not noise._flattest(energy, torch.zeros_like(where)).any()


def test_borders_of_the_mask_do_not_count() -> None:
    head = ball()
    flat = head.float()  # a step from 1 to 0 at its border
    assert noise_level(flat, head).item() == 0.0
    assert noise_level(flat).item() == 0.0  # the mask of a volume in [0, 1] is found
    noisy = torch.where(head, flat + 0.03 * white(24, 24, 24), 0.0)
    assert noise_level(noisy, head).item() == pytest.approx(0.03, rel=0.1)


def test_rows_of_a_batch_are_independent() -> None:
    volumes = torch.tensor([0.01, 0.1]).view(2, 1, 1, 1, 1) * white(2, 1, 24, 24, 24)
    found = noise_level(volumes, EVERYWHERE.expand(2, 1, 24, 24, 24))
    assert found.shape == (2, 1)
    alone = torch.stack([noise_level(volume[0], EVERYWHERE) for volume in volumes])
    assert torch.equal(found[:, 0], alone)


@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 8, 8)])
def test_without_a_cell_there_is_no_level(shape: tuple[int, ...]) -> None:
    thin = torch.zeros(shape, dtype=torch.bool)
    thin[:, 3:5] = True
    assert math.isnan(noise_level(torch.rand(shape), thin).item())
