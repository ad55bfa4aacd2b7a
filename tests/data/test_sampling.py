"""The data position: a pure function of seed and step, each pass once, each rank its share."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prod9.data.sampling import SampleKey, StepBatchSampler


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a run, with both phases."""
    num_steps = draw(st.integers(1, 30))
    return {
        "num_items": draw(st.integers(1, 17)),
        "batch_size": draw(st.integers(1, 5)),
        "num_steps": num_steps,
        "seed": draw(st.integers(0, 2**32)),
        "whole_steps": draw(st.integers(0, num_steps)),
    }


@given(run=runs())
@settings(deadline=None)
def test_each_pass_covers_each_item_once(run: dict[str, Any]) -> None:
    indices = [key.index for keys in StepBatchSampler(**run) for key in keys]
    n = run["num_items"]
    for start in range(0, len(indices) - n + 1, n):
        assert sorted(indices[start : start + n]) == list(range(n))
    assert set(indices) <= set(range(n))


@given(run=runs(), share=st.floats(0, 1))
@settings(deadline=None)
def test_a_restart_at_any_step_equals_the_tail(run: dict[str, Any], share: float) -> None:
    start = round(share * run["num_steps"])
    resumed = StepBatchSampler(**run, start_step=start)
    assert list(resumed) == list(StepBatchSampler(**run))[start:]
    assert len(resumed) == run["num_steps"] - start


@given(run=runs(), world_size=st.integers(1, 4))
@settings(deadline=None)
def test_ranks_are_disjoint_and_make_up_the_single_process_batch(
    run: dict[str, Any], world_size: int
) -> None:
    ranks = [list(StepBatchSampler(**run, rank=rank, world_size=world_size)) for rank in range(world_size)]
    crop_steps = run["num_steps"] - run["whole_steps"]
    single = iter(
        StepBatchSampler(
            **{
                **run,
                "whole_steps": 0,
                "batch_size": 1,
                "num_steps": world_size * (crop_steps * run["batch_size"] + run["whole_steps"]),
            }
        )
    )
    for step, shares in enumerate(zip(*ranks, strict=True)):
        merged = [key for share in shares for key in share]
        assert len({key.draw for key in merged}) == len(merged)
        for key in merged:
            (alone,) = next(single)
            assert (key.index, key.draw, key.whole) == (alone.index, alone.draw, step >= crop_steps)


@given(run=runs())
@settings(deadline=None)
def test_the_last_steps_take_one_whole_volume(run: dict[str, Any]) -> None:
    steps = list(StepBatchSampler(**run))
    crop_steps = run["num_steps"] - run["whole_steps"]
    assert all(
        len(keys) == run["batch_size"] and not any(k.whole for k in keys) for keys in steps[:crop_steps]
    )
    assert all(len(keys) == 1 and keys[0].whole for keys in steps[crop_steps:])


def test_draws_count_through_the_run() -> None:
    sampler = StepBatchSampler(num_items=5, batch_size=2, num_steps=6, seed=1, whole_steps=2)
    assert [key.draw for keys in sampler for key in keys] == list(range(10))


def test_passes_differ_and_seeds_differ() -> None:
    def order(seed: int) -> list[int]:
        sampler = StepBatchSampler(num_items=50, batch_size=50, num_steps=2, seed=seed)
        return [key.index for keys in sampler for key in keys]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[:50] != order(0)[50:]


def test_a_draw_has_one_random_stream() -> None:
    first, again, other = (SampleKey(3, draw).rng(7).random() for draw in (5, 5, 6))
    assert first == again != other
    assert SampleKey(3, 5).rng(8).random() != first
    assert isinstance(SampleKey(0, 0).rng(0), np.random.Generator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 0}, "at least 1"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1"),
        ({"whole_steps": 11}, "whole_steps"),
        ({"start_step": 11}, "start_step"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, int], message: str) -> None:
    run = {"num_items": 3, "batch_size": 1, "num_steps": 10, "seed": 0}
    with pytest.raises(ValueError, match=message):
        StepBatchSampler(**{**run, **change})
