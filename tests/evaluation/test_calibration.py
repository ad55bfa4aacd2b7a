"""Samples and truth of one distribution are calibrated for any number of samples; closed forms of each score."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prod9.evaluation.samples.calibration import (
    LEVELS,
    SHOWN,
    correlation,
    coverage_curve,
    fair_crps,
    interval_factor,
    one_for_truth,
    rank_curve,
    rank_levels,
    score_samples,
)

VOXELS = 40_000
FEW = settings(deadline=None, max_examples=12)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@FEW
@given(count=st.integers(2, 12), seed=st.integers(0, 999), noise=st.floats(0.01, 10.0))
def test_normal_samples_are_calibrated_for_any_number(count: int, seed: int, noise: float) -> None:
    scale = noise * normal(VOXELS, seed=seed + 1000).exp()  # another uncertainty in each voxel
    drawn = normal(count + 1, VOXELS, seed=seed) * scale + normal(VOXELS, seed=seed + 2000)
    covered = coverage_curve(drawn[1:], drawn[0])
    # Four standard errors of a share of this many voxels.
    assert covered == pytest.approx(LEVELS, abs=4 * 0.5 / math.sqrt(VOXELS))
    found = score_samples(drawn[1:], drawn[0])
    assert [found[f"coverage_{100 * p:.0f}"] for p in SHOWN] == [covered[LEVELS.index(p)] for p in SHOWN]
    assert found["calibration_error"] < 0.01


@FEW
@given(count=st.integers(2, 12), seed=st.integers(0, 999), kind=st.sampled_from(["exponential", "cauchy"]))
def test_ranks_are_calibrated_for_any_distribution(count: int, seed: int, kind: str) -> None:
    uniform = torch.rand(
        count + 1, VOXELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    drawn = -uniform.log() if kind == "exponential" else (math.pi * (uniform - 0.5)).tan()
    levels = rank_levels(count)
    assert len(levels) == count // 2
    assert levels[-1] == pytest.approx((count - 1) / (count + 1))
    assert rank_curve(drawn[1:], drawn[0]) == pytest.approx(levels, abs=4 * 0.5 / math.sqrt(VOXELS))


def test_the_factor_is_that_of_a_prediction_interval() -> None:
    assert interval_factor(2, 0.5) == pytest.approx(
        math.sqrt(1.5)
    )  # the quartile of a Cauchy distribution is 1
    assert interval_factor(100_000, 0.95) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)


@FEW
@given(count=st.integers(2, 16), spread=st.floats(0.25, 4.0), seed=st.integers(0, 999))
def test_crps_and_spread_of_normal_samples(count: int, spread: float, seed: int) -> None:
    samples, truth = spread * normal(count, VOXELS, seed=seed), normal(VOXELS, seed=seed + 1000)
    found = score_samples(samples, truth)
    # E|X − Y| − ½ E|X − X'| of N(0, s²) against N(0, 1): √(2 (1 + s²) / π) − s / √π, whatever the number of samples.
    expected = math.sqrt(2 * (1 + spread**2) / math.pi) - spread / math.sqrt(math.pi)
    assert found["crps"] == pytest.approx(expected, abs=0.02 * (1 + spread))
    error = math.sqrt(1 + spread**2 / count)
    assert found["spread_ratio"] == pytest.approx(spread * math.sqrt(1 + 1 / count) / error, rel=0.03)
    assert found["mean_error"] == pytest.approx(error * math.sqrt(2 / math.pi), rel=0.03)


def test_crps_is_least_for_the_true_spread_and_that_of_the_pairs() -> None:
    truth = normal(VOXELS, seed=1)
    scores = [fair_crps(s * normal(4, VOXELS, seed=2), truth) for s in (0.25, 1.0, 4.0)]
    assert scores[1] == min(scores)
    assert scores[1] == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    samples = normal(5, 7, seed=3)
    pairs = sum((samples[i] - samples[j]).abs() for i in range(5) for j in range(i)) / (5 * 4)
    direct = ((samples - truth[:7]).abs().mean(0) - pairs).mean().item()
    assert fair_crps(samples, truth[:7]) == pytest.approx(direct, rel=1e-5)


def test_samples_that_are_too_sure_or_not_sure_enough() -> None:
    truth = normal(VOXELS, seed=1)
    sure, unsure = (score_samples(s * normal(8, VOXELS, seed=2), truth) for s in (0.3, 3.0))
    assert sure["coverage_90"] < 0.5 < 0.99 < unsure["coverage_90"]
    assert sure["spread_ratio"] < 0.5 < 2.0 < unsure["spread_ratio"]
    assert sure["width_90"] == pytest.approx(0.1 * unsure["width_90"], rel=1e-3)


def test_the_width_is_that_of_the_interval() -> None:
    found = score_samples(normal(8, VOXELS, seed=0), torch.zeros(VOXELS))
    deviation = (
        math.sqrt(2 / 7) * math.gamma(4) / math.gamma(3.5)
    )  # mean of the deviation of eight normal values
    assert found["width_90"] == pytest.approx(2 * interval_factor(8, 0.9) * deviation, rel=0.01)


def test_spread_that_follows_the_error_correlates_as_among_the_samples() -> None:
    scale = torch.linspace(0.1, 2.0, VOXELS)
    samples, truth = scale * normal(9, VOXELS, seed=0), scale * normal(VOXELS, seed=1)
    found = score_samples(samples, truth)["spread_correlation"]
    best = one_for_truth(samples, ["spread_correlation"])["spread_correlation"]
    assert 0.4 < found < 0.7
    assert found == pytest.approx(best, abs=0.03)
    flat = score_samples(normal(9, VOXELS, seed=2), truth)["spread_correlation"]
    assert abs(flat) < 0.03
    x = normal(100, seed=4)
    assert correlation(x, 3 * x + 1) == pytest.approx(1.0)


def test_equal_samples() -> None:
    same = torch.rand(1000)
    found = score_samples(same.expand(3, -1), same)
    assert found["coverage_50"] == 1.0
    assert found["crps"] == pytest.approx(0.0, abs=1e-7)
    assert math.isnan(found["spread_correlation"])
    assert score_samples(same.expand(2, -1), same + 0.1)["coverage_95"] == 0.0
    assert math.isnan(one_for_truth(same.expand(2, -1), ["crps"])["crps"])
    empty = score_samples(torch.zeros(4, 0), torch.zeros(0))
    assert empty.keys() == found.keys()
    assert all(math.isnan(value) for value in empty.values())
