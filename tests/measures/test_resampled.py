"""Samples of the same rows have the distance that their features have."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.measures import resampled
from prod9.measures.metrics import principal_frechet
from prod9.measures.resampled import ResampledFrechet


@given(
    sizes=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    dimensions=st.integers(12, 40),
    directions=st.integers(1, 4),
    offset=st.sampled_from([0.0, 3.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_a_sample_has_the_distance_of_its_features(sizes, dimensions, directions, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(14, dimensions, generator=generator, dtype=torch.float64) + offset
    a, b = (torch.randint(14, (size,), generator=generator) for size in sizes)
    wanted = principal_frechet(features[a], features[b], directions=directions).item()
    found = ResampledFrechet(features)(a, b, directions=directions)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9 * (1 + offset))


def test_many_rows_are_compared_by_their_features(monkeypatch):
    features, rows = torch.randn(20, 50), torch.arange(10)
    few = ResampledFrechet(features)(rows, rows + 10, directions=2)
    monkeypatch.setattr(resampled, "MOST_ROWS", 19)
    many = ResampledFrechet(features)
    assert many(rows, rows + 10, directions=2) == pytest.approx(few)
    assert "products" not in vars(many)


def test_what_is_not_finite_and_too_few_rows():
    features = torch.randn(8, 30)
    features[3] = torch.nan
    distance = ResampledFrechet(features)
    assert torch.tensor(distance(torch.tensor([3, 1]), torch.tensor([4, 5]), directions=1)).isnan()
    assert distance(torch.tensor([0, 1]), torch.tensor([4, 5]), directions=1) > 0
    with pytest.raises(ValueError, match="at least 2 samples"):
        distance(torch.tensor([0]), torch.tensor([4, 5]), directions=1)
