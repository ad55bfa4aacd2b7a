"""Points of (cost, loss), both better if lower: which are worth having, and where more cost stops to pay."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""(cost, loss); an infinite loss is unknown and worse than any other."""


def ranks(points: Sequence[Point]) -> list[int]:
    """Return the rank of each point: 0 where no other is as good in both, 1 where only those of rank 0 are, and so on.

    This is non-dominated sorting (Deb et al. 2002, NSGA-II).

    Example:
        >>> from prod9.evaluation.tuning.front import ranks
        >>> ranks([(1, 3), (2, 1), (2, 2), (3, 2)])
        [0, 0, 1, 2]
    """
    found = [-1] * len(points)
    rank = 0
    while -1 in found:
        left = [i for i, one in enumerate(found) if one == -1]
        first = [i for i in left if not any(_dominates(points[j], points[i]) for j in left)]
        for i in first:
            found[i] = rank
        rank += 1
    return found


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points of rank 0 with a known loss, by cost; of equal points the first one alone."""
    best = [i for i, rank in enumerate(ranks(points)) if rank == 0 and math.isfinite(points[i][1])]
    seen: dict[Point, int] = {}
    for i in best:
        seen.setdefault(points[i], i)
    return sorted(seen.values(), key=lambda i: points[i])


def knee(points: Sequence[Point]) -> int:
    """Return the index of the knee of the front of ``points``.

    On logarithmic axes, with the front scaled to the unit square, it is the point farthest below the straight line from
    the cheapest point to the best one (the idea of Kneedle, Satopää et al. 2011): before it the loss falls faster than
    on the whole front, after it more slowly. Where no point lies below that line it is the best point. Costs are
    above 0, losses too, and at least one loss is known.
    """
    ends = front(points)
    xs, ys = ([math.log(points[i][axis]) for i in ends] for axis in (0, 1))
    if len(ends) < 3:
        return ends[-1]
    wide, high = xs[-1] - xs[0], ys[0] - ys[-1]
    below = [(xs[-1] - x) / wide - (y - ys[-1]) / high for x, y in zip(xs, ys, strict=True)]
    place = max(range(len(ends)), key=below.__getitem__)
    return ends[place] if below[place] > 1e-9 else ends[-1]


def _dominates(one: Point, other: Point) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
