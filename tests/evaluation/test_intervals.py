import pytest
import torch

from prod9.evaluation.sets.intervals import crossed_interval, mean_interval, real_floor, score_interval


def mean_gap(a, b):
    return lambda i, j: (a[i].mean() - b[j].mean()).abs().item()


def test_the_interval_of_a_mean_is_that_of_theory():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    low, high = mean_interval(values, replicates=2000, seed=1)
    error = values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean().item() + 1.96 * error, abs=0.02)
    with_gaps = torch.cat([values, torch.full((5,), torch.nan)])
    assert mean_interval(with_gaps, replicates=2000, seed=1) == (low, high)


def test_one_volume_has_no_interval():
    assert mean_interval(torch.ones(1), replicates=10, seed=0) is None
    assert score_interval(lambda i, j: 0.0, 1, 9, replicates=10, seed=0) is None
    assert crossed_interval(torch.ones(3, 1), replicates=10, seed=0) is None


def test_the_interval_of_a_score_lies_around_it():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, generator=generator), torch.randn(60, generator=generator) + 2
    score = mean_gap(a, b)
    low, high = score_interval(score, 50, 60, replicates=200, seed=0)
    value = score(torch.arange(50), torch.arange(60))
    assert low < value < high
    assert high - low == pytest.approx(4 * (1 / 50 + 1 / 60) ** 0.5, rel=0.3)


def test_the_floor_is_near_the_score_of_a_set_of_the_same_kind():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(80, generator=generator)
    same, other = torch.randn(40, generator=generator), torch.randn(40, generator=generator) + 3
    floors = [
        real_floor(mean_gap(x, real), mean_gap(real, real), 40, 80, fewest=2, seed=0) for x in (same, other)
    ]
    assert floors[0].sizes == (40, 40)
    assert floors[0].value == floors[1].value  # real against real, whatever is judged
    assert floors[0].matched < 0.6
    assert floors[0].value < 0.6
    assert floors[1].matched == pytest.approx(3, abs=0.6)
    assert real_floor(mean_gap(same, real), mean_gap(real, real), 40, 3, fewest=2, seed=0) is None


def test_seeds_and_patients_both_widen_the_interval():
    generator = torch.Generator().manual_seed(0)
    patients = torch.rand(1, 30, generator=generator).expand(3, 30)
    seeds = torch.tensor([[0.0], [0.3], [0.6]])
    narrow = crossed_interval(patients, replicates=500, seed=0)
    wide = crossed_interval(patients + seeds, replicates=500, seed=0)
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    assert crossed_interval(patients, over=patients, replicates=500, seed=0) == pytest.approx((1.0, 1.0))
    nothing = torch.zeros(3, 30)
    assert crossed_interval(patients, over=nothing, replicates=50, seed=0) is None
