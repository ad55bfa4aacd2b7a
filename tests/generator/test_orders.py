"""Reveal orders visit every cell exactly once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.generator.orders import FIXED_ORDERS, draw_orders, halton_order
from tests.draws import seeded

GRIDS = [(1, 1, 1), (1, 1, 10), (3, 5, 7), (4, 4, 4), (1, 9, 2), (11, 3, 6), (18, 24, 18)]


@pytest.mark.parametrize("order", FIXED_ORDERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_is_visited_once(order, grid):
    generators = [seeded(k) for k in range(3)]
    orders = draw_orders(order, grid, generators, torch.device("cpu"))
    cells = torch.arange(int(np.prod(grid)))
    assert torch.equal(orders.sort(1).values, cells.expand(3, -1))


@given(st.tuples(*[st.integers(1, 9)] * 3))
def test_halton_covers_any_grid(grid):
    assert np.array_equal(np.sort(halton_order(grid)), np.arange(np.prod(grid)))


def test_halton_is_the_order_of_first_visits_by_definition():
    def inverse(i, base):
        value, scale = 0.0, 1.0
        while i:
            scale /= base
            value, i = value + i % base * scale, i // base
        return value

    grid, seen = (3, 5, 4), []
    for i in range(5000):
        x, y, z = int(3 * inverse(i, 5)), int(5 * inverse(i, 2)), int(4 * inverse(i, 3))
        cell = (x * 5 + y) * 4 + z
        if cell not in seen:
            seen.append(cell)
    assert halton_order(grid).tolist() == seen


def test_a_prefix_of_halton_is_spread_evenly():
    half = halton_order((8, 8, 8))[:64]
    octants = np.stack(np.unravel_index(half, (8, 8, 8))) // 4
    counts = np.bincount(np.ravel_multi_index(octants, (2, 2, 2)), minlength=8)
    assert counts.min() >= 6
    assert counts.max() <= 10


def test_orders_differ_between_samples_and_repeat_with_the_generator():
    for order in FIXED_ORDERS:
        generators = [seeded(k) for k in (1, 2, 1)]
        one, two, again = draw_orders(order, (4, 4, 4), generators, torch.device("cpu"))
        assert torch.equal(one, again)
        assert not torch.equal(one, two)
