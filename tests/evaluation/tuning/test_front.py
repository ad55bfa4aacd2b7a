"""The front and the knee of points whose answer is known."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.evaluation.tuning.front import front, knee, ranks
from prod9.evaluation.tuning.search import survivors

POINTS = st.lists(
    st.tuples(st.integers(1, 9).map(float), st.integers(1, 9).map(float)), min_size=1, max_size=12
)


def test_the_knee_of_a_corner_is_the_corner():
    points = [(1, 16), (2, 4), (4, 1), (8, 0.95), (16, 0.9)]
    assert knee([(float(x), float(y)) for x, y in points]) == 2


def test_the_knee_of_a_hyperbola_in_the_logarithms_is_its_vertex():
    """log loss = 1 / log cost: symmetric about the diagonal, so the vertex (1, 1) is farthest below the chord."""
    points = [(math.exp(x), math.exp(1 / x)) for x in (4, 2, 1, 0.5, 0.25)]
    assert knee(points) == 2


def test_on_a_straight_line_and_with_two_points_the_best_one_counts():
    line = [(2.0**k, 2.0**-k) for k in range(5)]
    assert knee(line) == 4
    assert knee([(1.0, 2.0), (2.0, 1.0)]) == 1
    assert knee([(1.0, 2.0)]) == 0


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    best = front(points)
    assert [points[i][0] for i in best] == sorted(points[i][0] for i in best)
    losses = [points[i][1] for i in best]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    for cost, loss in points:
        assert any(points[i][0] <= cost and points[i][1] <= loss for i in best)
    assert knee(points) in best


@given(POINTS)
def test_ranks_peel_fronts_off(points):
    found = ranks(points)
    assert {points[i] for i, rank in enumerate(found) if rank == 0} == {points[i] for i in front(points)}
    assert sorted(set(found)) == list(range(max(found) + 1))


def test_an_unknown_loss_is_never_on_the_front():
    assert front([(1.0, math.inf), (2.0, 1.0)]) == [1]


@pytest.mark.parametrize(("count", "wanted"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2])])
def test_the_own_setting_goes_on_and_then_the_front(count, wanted):
    points = [(9.0, 9.0), (1.0, 5.0), (2.0, 1.0), (3.0, 8.0)]
    assert survivors(points, count) == wanted
