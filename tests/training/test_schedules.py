"""Learning-rate schedules per step."""

from itertools import pairwise

import pytest

from prod9.config.schema import LrScheduleConfig
from prod9.training.schedules import learning_rate_factor


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_starts_after_warmup_and_plateau_and_ends_at_the_final_fraction(kind):
    schedule = LrScheduleConfig(kind=kind, warmup_steps=10, flat_fraction=0.5, final_fraction=0.02)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]

    assert factors[0] == pytest.approx(0.1)
    assert factors[9:61] == [1.0] * 52
    assert factors[99] == pytest.approx(0.02)
    assert all(later <= earlier for earlier, later in pairwise(factors[9:]))


def test_constant_stays_at_the_peak():
    schedule = LrScheduleConfig(kind="constant", warmup_steps=0)
    assert {learning_rate_factor(schedule, step, 5) for step in range(5)} == {1.0}


def test_a_run_shorter_than_its_warmup_keeps_rising():
    schedule = LrScheduleConfig(warmup_steps=100)
    assert learning_rate_factor(schedule, 4, 5) == pytest.approx(0.05)
