"""γ and the corruption of training samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.generator.maskgit import SCHEDULES, MaskGiTScheduler
from tests.draws import seeded

EVERY = pytest.mark.parametrize("scheduler_type", SCHEDULES)


@EVERY
def test_gamma_falls_from_one_to_zero(scheduler_type):
    scheduler = MaskGiTScheduler(scheduler_type=scheduler_type)
    gamma = scheduler.gamma(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert gamma[0] == 1.0
    assert gamma[-1] == 0.0
    assert (gamma.diff() < 0).all()
    assert scheduler.gamma(0.25) == gamma[250]


def test_values_halfway():
    half = {name: float(MaskGiTScheduler(scheduler_type=name).gamma(0.5)) for name in SCHEDULES}
    expected = {
        "log": 0.58496,
        "log2": 0.58496,
        "linear": 0.5,
        "sqrt": 0.70711,
        "cosine": 0.70711,
        "arccos": 2 / 3,
    }
    assert half == pytest.approx(expected, abs=1e-5)


def test_unknown_schedule_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"arccos.*got 'cos'"):
        MaskGiTScheduler(scheduler_type="cos")


@EVERY
def test_corruption_hides_exactly_the_share_of_the_schedule(scheduler_type):
    scheduler = MaskGiTScheduler(scheduler_type=scheduler_type)
    tokens = torch.randint(1, 60, (9, 3, 5, 2))
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    sample = scheduler.corrupt_at(tokens, times, seeded(0))
    counts = sample.mask.flatten(1).sum(1)
    assert torch.equal(counts, scheduler.num_hidden(times, 30).clamp_min(1))
    assert counts[0] == 30
    assert counts[-1] == 1, "at least one token is hidden"
    assert torch.equal(sample.target, tokens)
    assert not sample.tokens[sample.mask].any(), "nothing of the target leaks"
    assert torch.equal(sample.tokens[~sample.mask], tokens[~sample.mask])


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_times_are_stratified_over_the_batch(batch, seed):
    scheduler = MaskGiTScheduler(scheduler_type="linear")
    tokens = torch.zeros(batch, 10, 10, 10, dtype=torch.int64)
    sample = scheduler.corrupt(tokens, seeded(seed))
    times = 1 - sample.mask.flatten(1).sum(1).double().sort(descending=True).values / 1000
    edges = torch.arange(batch + 1) / batch
    assert (times >= edges[:-1] - 1e-3).all()
    assert (times <= edges[1:] + 1e-3).all()


def test_every_token_is_hidden_equally_often():
    scheduler = MaskGiTScheduler(scheduler_type="arccos")
    tokens = torch.zeros(4000, 2, 2, 3, dtype=torch.int64)
    share = scheduler.corrupt(tokens, seeded(0)).mask.double().mean(0)
    assert torch.allclose(share, torch.full_like(share, 2 / 3.14159265), atol=0.03)


def test_same_generator_same_mask():
    scheduler, tokens = MaskGiTScheduler(), torch.zeros(3, 4, 4, 4, dtype=torch.int64)
    masks = [scheduler.corrupt(tokens, seeded(5)).mask for _ in range(2)]
    assert torch.equal(*masks)
