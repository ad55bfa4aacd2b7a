"""Rank correlation against another library, and what it does not depend on."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from prod9.measures.ranks import rank_correlation
from tests.draws import seeded


def test_it_is_that_of_scipy_with_ties_too() -> None:
    draws = seeded()
    a = torch.randint(0, 6, (40,), generator=draws).float()
    b = a + torch.randint(0, 9, (40,), generator=draws)
    assert abs(rank_correlation(a, b) - spearmanr(a.numpy(), b.numpy()).statistic) < 1e-9
    assert rank_correlation(a, torch.ones(40)) != rank_correlation(a, torch.ones(40))  # NaN


@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=20, unique=True))
def test_only_order_counts(values: list[float]) -> None:
    a = torch.tensor(values)
    assert abs(rank_correlation(a, 3 * a.double()) - 1) < 1e-9
    assert abs(rank_correlation(a, -a) + 1) < 1e-9
