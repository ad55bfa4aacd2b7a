"""Intervals of scores by resampling, and floors: the scores of real volumes against each other.

Patients are drawn and divided, not volumes. The volumes of one patient resemble each other: an interval over volumes
would be much too narrow, and a real set that is divided by volumes would be compared with its own patients.

A score of two sets is an :data:`IndexedScore`. It is made once for the sets and called with rows of each, so that
kernels and distances are computed once and then only looked up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from prod9.evaluation.sets.members import Members, as_members

LEVEL = 0.95
DRAWS = 8
MEAN_FACTOR = 10
"""Bootstrap samples of a mean per sample of a set's score: they cost almost nothing."""
_USABLE = 0.5
"""Share of the bootstrap samples that must give a number; few patients may be drawn as a single one."""

Index = Int64[Tensor, " n"]
IndexedScore = Callable[[Tensor, Tensor], float]
"""(rows of the generated set, rows of the real set) → score."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Floor:
    """Generated and real volumes against the same real ones, in equal numbers; means over random divisions.

    The distance of two samples of one distribution is not 0, and falls as they grow: only ``matched`` may be compared
    with ``value``.

    Attributes:
        matched: score of generated volumes.
        value: score of real volumes.
        sizes: patients of the set that is scored, and of the set that it is compared with.
    """

    matched: float
    value: float
    sizes: tuple[int, int]


def mean_interval(
    values: Float[Tensor, " N"],
    *,
    replicates: int,
    seed: int,
    patients: Int64[Tensor, " N"] | None = None,
    bounds: Interval = (-math.inf, math.inf),
) -> Interval | None:
    """Return the bootstrap interval of the mean of ``values`` over patients, NaN left out.

    None for fewer than 2 patients: the volumes of one give no information about others.

    Args:
        values: one for each volume.
        replicates: ``MEAN_FACTOR`` samples are drawn for each; 0 for no interval.
        seed: of the draws.
        patients: number of each value's patient; by default all differ.
        bounds: lowest and highest possible value.

    Example:
        >>> import torch
        >>> from prod9.evaluation.sets.intervals import mean_interval
        >>> dice, patients = torch.tensor([0.6, 0.7, 0.8, 0.9]), torch.tensor([0, 0, 1, 2])
        >>> low, high = mean_interval(dice, patients=patients, replicates=100, seed=0, bounds=(0.0, 1.0))
        >>> low < 0.75 < high
        True
    """
    known = ~values.isnan()
    values = values[known].double()
    owners = as_members(len(known) if patients is None else patients).patients[known]
    _, owners = owners.unique(return_inverse=True)
    count = int(owners.max()) + 1 if len(owners) else 0
    if count < 2 or not replicates:
        return None
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, values)
    sizes = torch.bincount(owners, minlength=count).double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (MEAN_FACTOR * replicates, count), generator=generator)
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = _expanded(means, values.mean().item(), count)
    return max(low, bounds[0]), min(high, bounds[1])


def score_interval(
    score: IndexedScore,
    generated: Members | int,
    real: Members | int,
    *,
    replicates: int,
    seed: int,
    least: float = -math.inf,
    most: float = math.inf,
) -> Interval | None:
    """Return the bootstrap interval of a score of two sets, whose patients are both resampled.

    None where a set has fewer than 2 patients, or where most samples give no score. Replicates hold fewer different
    samples than the sets, which raises distances: their spread is therefore put around the score itself. The interval
    shows how the score would vary with as many other patients, not how far it is from the limit of many patients.

    Args:
        score: of rows of both sets.
        generated: members of the generated rows; a number where all patients differ.
        real: members of the real rows.
        replicates: bootstrap samples, 0 for no interval.
        seed: of the draws.
        least: lowest possible score.
        most: highest possible score.
    """
    sides = as_members(generated), as_members(real)
    fewest = min(side.num_patients for side in sides)
    if fewest < 2 or not replicates:
        return None
    generator = torch.Generator().manual_seed(seed)
    groups = [side.strata() for side in sides]
    values = []
    for _ in range(replicates):
        drawn = [torch.cat([_drawn(own, generator) for own in side]) for side in groups]
        values.append(score(drawn[0], drawn[1]))
    centre = score(torch.arange(len(sides[0])), torch.arange(len(sides[1])))
    found = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    if len(found) < max(2, _USABLE * replicates) or not math.isfinite(centre):
        return None
    return _bounded(_expanded(found - found.mean() + centre, centre, fewest), centre, (least, most))


def real_floor(
    score: IndexedScore,
    between_real: IndexedScore,
    generated: Members | int,
    real: Members | int,
    *,
    fewest: int,
    seed: int,
    draws: int = DRAWS,
) -> Floor | None:
    """Divide the real patients at random, and score generated and the other real volumes against the same half.

    Both sides hold equally many patients with the same modalities, and so equally many volumes: each real patient is
    matched with a generated one, and both give only the modalities that they have in common.

    Args:
        score: of the generated set against the real one.
        between_real: of the real set against itself.
        generated: members of the generated rows; a number where all patients differ.
        real: members of the real rows.
        fewest: volumes that the score needs on each side; with fewer the result is None.
        seed: of the divisions.
        draws: number of divisions that are averaged.
    """
    made, there = as_members(generated), as_members(real)
    generator = torch.Generator().manual_seed(seed)
    own = [_by_kind(rows, made.kinds) for rows in made.rows_by_patient()]
    rows = there.rows_by_patient()
    theirs = [_by_kind(patient, there.kinds) for patient in rows]
    half = len(rows) // 2
    matched, floor, sizes = [], [], (0, 0)
    for _ in range(draws):
        order = torch.randperm(len(rows), generator=generator).tolist()
        candidates = torch.randperm(len(own), generator=generator).tolist()
        judges = torch.cat([rows[p] for p in order[:half]]) if half else torch.zeros(0, dtype=torch.int64)
        ours, others, pairs = _alike([own[p] for p in candidates], [theirs[p] for p in order[half:]])
        if min(len(judges), len(ours)) < fewest:
            continue
        values = score(ours, judges), between_real(others, judges)
        if all(math.isfinite(value) for value in values):
            matched.append(values[0])
            floor.append(values[1])
            sizes = sizes if sizes[0] else (pairs, half)
    if not matched:
        return None
    return Floor(sum(matched) / len(matched), sum(floor) / len(floor), sizes)


ByKind = dict[int, Tensor]
"""Modality → rows of one patient."""


def _alike(own: list[ByKind], others: list[ByKind]) -> tuple[Tensor, Tensor, int]:
    """Return equally many rows per modality of both sides, from pairs of patients, and the number of pairs."""
    left = list(own)
    chosen: tuple[list[Tensor], list[Tensor]] = [], []
    pairs = 0
    for theirs in others:
        place = next((k for k, kinds in enumerate(left) if kinds.keys() & theirs.keys()), None)
        if place is None:
            continue
        ours = left.pop(place)
        pairs += 1
        for kind in sorted(ours.keys() & theirs.keys()):
            count = min(len(ours[kind]), len(theirs[kind]))
            chosen[0].append(ours[kind][:count])
            chosen[1].append(theirs[kind][:count])
    empty = torch.zeros(0, dtype=torch.int64)
    return torch.cat([empty, *chosen[0]]), torch.cat([empty, *chosen[1]]), pairs


def _by_kind(rows: Tensor, kinds: Tensor) -> ByKind:
    own = kinds[rows]
    return {int(kind): rows[own == kind] for kind in own.unique()}


def crossed_interval(
    values: Float[Tensor, "S C"],
    *,
    replicates: int,
    seed: int,
    over: Float[Tensor, "S C"] | None = None,
    patients: Int64[Tensor, " C"] | None = None,
    least: float = -math.inf,
    most: float = math.inf,
) -> Interval | None:
    """Return the bootstrap interval of the mean over seeds and cases, which are both resampled; NaN left out.

    None for fewer than 2 patients. With few seeds the interval is too narrow.

    Args:
        values: one row for each seed, one column for each case.
        replicates: bootstrap samples, 0 for no interval.
        seed: of the draws.
        over: divide by the mean of these values, for the same patients.
        patients: number of each case's patient; by default all differ.
        least: lowest possible value.
        most: highest possible value.
    """
    kept = ~values.isnan().any(0)
    if over is not None:
        kept &= ~over.isnan().any(0)
    owners = as_members(len(kept) if patients is None else patients).patients[kept]
    columns = Members(owners, torch.zeros_like(owners)).rows_by_patient()
    if len(columns) < 2 or not replicates:
        return None
    generator = torch.Generator().manual_seed(seed)
    rows, below = values[:, kept].double(), None if over is None else over[:, kept].double()

    def mean(of: Tensor, cases: Tensor) -> Tensor:
        return of[torch.randint(len(of), (len(of),), generator=generator)][:, cases].mean()

    means = []
    for _ in range(replicates):
        cases = _drawn(columns, generator)
        value = mean(rows, cases)
        means.append(value if below is None else value / mean(below, cases))
    centre = rows.mean() if below is None else rows.mean() / below.mean()
    found = torch.stack(means)
    # Ratios with a zero denominator are not finite; with many of them there is no interval.
    finite = found[found.isfinite()]
    if len(finite) <= 0.9 * replicates or not centre.isfinite():
        return None
    return _bounded(_expanded(finite, centre.item(), len(columns)), centre.item(), (least, most))


def _drawn(rows: list[Tensor], generator: torch.Generator) -> Tensor:
    """Draw as many patients as there are, with replacement, and return their rows."""
    return torch.cat([rows[k] for k in torch.randint(len(rows), (len(rows),), generator=generator).tolist()])


def _bounded(interval: Interval, centre: float, bounds: Interval) -> Interval:
    """Return ``interval`` without what lies beyond the lowest and the highest possible value of ``bounds``."""
    low, high = interval
    return max(low, min(bounds[0], centre)), min(high, max(bounds[1], centre))


def _expanded(values: Tensor, centre: float, patients: int) -> Interval:
    """Return the ends of the bootstrap distribution, corrected for the number of patients.

    Percentiles of a bootstrap over n patients are too near to the centre by a factor √((n−1)/n), and because they
    follow the normal instead of the t distribution (Hesterberg 2015): uncorrected, 95% intervals of 5 patients cover
    83%.
    """
    from scipy import stats  # takes half a second to import

    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    student = stats.t.ppf(1 - tail, patients - 1) / stats.norm.ppf(1 - tail)
    factor = float(student) * math.sqrt(patients / (patients - 1))
    return centre + factor * min(low - centre, 0.0), centre + factor * max(high - centre, 0.0)
