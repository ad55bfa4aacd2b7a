"""How sure a score is: intervals by resampling, and the score of real volumes against each other.

A score of two sets comes as an :data:`IndexedScore`, made once for the sets and called with rows of each, so that
kernels and distances are computed once and only looked up afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LEVEL = 0.95
DRAWS = 8

Index = Int64[Tensor, " n"]
IndexedScore = Callable[[Tensor, Tensor], float]
"""(rows of the generated set, rows of the real set) → score."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Floor:
    """Generated and real volumes against the same real ones, at equal numbers; means over random divisions.

    A distance between two samples of one distribution is not 0, and falls as they grow: only ``matched`` may be
    compared with ``value``. sizes: volumes of the judged and of the judging side.
    """

    matched: float
    value: float
    sizes: tuple[int, int]


def mean_interval(values: Float[Tensor, " N"], *, replicates: int, seed: int) -> Interval | None:
    """Return the bootstrap interval of the mean of ``values``, NaN left out; None for fewer than 2."""
    values = values[~values.isnan()].double()
    if len(values) < 2 or not replicates:
        return None
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (replicates, len(values)), generator=generator)
    return _ends(values[rows].mean(1))


def score_interval(
    score: IndexedScore, num_generated: int, num_real: int, *, replicates: int, seed: int
) -> Interval | None:
    """Return the bootstrap interval of a score of two sets, both resampled; None where a side has fewer than 2.

    Replicates hold fewer different samples than the sets, which raises distances: their spread is put around the
    score itself, not where they lie. It tells how the score at these numbers would vary with other volumes,
    not how far it is from that of endless ones.
    """
    if min(num_generated, num_real) < 2 or not replicates:
        return None
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(replicates):
        rows = [torch.randint(n, (n,), generator=generator) for n in (num_generated, num_real)]
        values.append(score(*rows))
    centre = score(torch.arange(num_generated), torch.arange(num_real))
    spread = torch.tensor(values, dtype=torch.float64)
    low, high = _ends(spread - spread.mean() + centre)
    return low, high


def real_floor(
    score: IndexedScore,
    between_real: IndexedScore,
    num_generated: int,
    num_real: int,
    *,
    fewest: int,
    seed: int,
    draws: int = DRAWS,
) -> Floor | None:
    """Divide the real set at random, and score generated and left-over real volumes against the same half.

    score, between_real: of the generated set and of the real set, each against the real one. fewest: volumes that the
    score needs on each side; None where there aren't as many.
    """
    half = num_real // 2
    count = min(num_generated, num_real - half)
    if min(half, count) < fewest:
        return None
    generator = torch.Generator().manual_seed(seed)
    matched, floor = [], []
    for _ in range(draws):
        order = torch.randperm(num_real, generator=generator)
        judges, others = order[:half], order[half : half + count]
        matched.append(score(torch.randperm(num_generated, generator=generator)[:count], judges))
        floor.append(between_real(others, judges))
    return Floor(sum(matched) / draws, sum(floor) / draws, (count, half))


def crossed_interval(
    values: Float[Tensor, "S P"],
    *,
    replicates: int,
    seed: int,
    over: Float[Tensor, "S P"] | None = None,
) -> Interval | None:
    """Return the bootstrap interval of the mean over seeds and patients, both resampled; NaN left out.

    over: the interval of the ratio to the mean of these instead, the same patients in both. None for fewer than 2
    patients. Of few seeds the interval sees little: it is too narrow rather than too wide.
    """
    kept = ~values.isnan().any(0)
    if int(kept.sum()) < 2 or not replicates:
        return None
    generator = torch.Generator().manual_seed(seed)
    rows, columns = values[:, kept].double(), None if over is None else over[:, kept].double()
    means = []
    for _ in range(replicates):
        patients = torch.randint(rows.shape[1], (rows.shape[1],), generator=generator)
        mean = rows[torch.randint(len(rows), (len(rows),), generator=generator)][:, patients].mean()
        if columns is not None:
            mean = (
                mean
                / columns[torch.randint(len(rows), (len(rows),), generator=generator)][:, patients].mean()
            )
        means.append(mean)
    found = torch.stack(means)
    # A ratio to nothing is no number; where that is common, neither is the interval.
    finite = found[found.isfinite()]
    return _ends(finite) if len(finite) > 0.9 * replicates else None


def _ends(values: Tensor) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
