"""Scores of a generated set against a real one, from what :mod:`prod9.evaluation.sets.rows` kept of both."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.evaluation.judges.features import MAX_SLICES
from prod9.evaluation.score_table import Score
from prod9.evaluation.sets.appearance import (
    RADIOMICS,
    histogram_distance,
    radiomic_distance,
    spectrum_distance,
)
from prod9.evaluation.sets.intervals import (
    Floor,
    IndexedScore,
    mean_interval,
    real_floor,
    score_interval,
)
from prod9.evaluation.sets.manifold import (
    NEIGHBOURS,
    compare_manifolds,
    manifold_of_distances,
    pairwise_distances,
    polynomial_kernel,
    squared_mmd,
    standardised,
)
from prod9.evaluation.sets.members import Members, number_members
from prod9.evaluation.sets.rows import DETAIL, HISTOGRAM, SPECTRUM, SetRows
from prod9.measures.metrics import frechet_distance, num_directions, principal_frechet

ALL = "all"
FEW = 20
"""Fewer patients than this say little, whatever the score."""

Pick = Callable[[SetRows], Tensor]
Both = tuple[Members, Members]
MakeScore = Callable[[Tensor, Tensor, Both], IndexedScore]
"""(generated rows, real rows, whose they are) → their score, by index."""


@dataclass(frozen=True)
class _Comparison:
    """A distance of two sets.

    fewest: volumes needed of each. enough(D): patients it takes to rely on it. directions: (patients, D) → in how
    many dimensions it compares, where those are not all. least: what it can be at least.
    """

    group: str
    metric: str
    pick: Pick
    make: MakeScore
    fewest: int
    enough: Callable[[int], int]
    extractor: str | None = None
    better: str = "lower"
    unit: str = ""
    directions: Callable[[int, int], int] = lambda patients, dimensions: dimensions
    least: float = 0.0


@dataclass(frozen=True)
class Resampling:
    """How intervals and floors are drawn. replicates: bootstrap samples, 0 for no intervals."""

    replicates: int = 100
    seed: int = 0


def score_sets(
    generated: SetRows, real: SetRows, extractors: Sequence[str], resampling: Resampling
) -> list[Score]:
    """Return all scores over both sets and, where both hold several modalities, of each of them.

    extractors: names of those that rows were made with.
    """
    scores = list(_score(generated, real, extractors, resampling, ALL))
    common = [name for name in generated.modalities if name in real.modalities]
    if len({*generated.modalities, *real.modalities}) > 1:
        for name in common:
            scores += _score(generated.of(name), real.of(name), extractors, resampling, name)
    return scores


def _score(
    generated: SetRows, real: SetRows, extractors: Sequence[str], resampling: Resampling, modality: str
) -> Iterator[Score]:
    for name in extractors:
        for comparison in _of_extractor(name):
            yield _compare(comparison, generated, real, resampling, modality)
        yield from _manifold(name, generated, real, resampling, modality)
    for comparison in _APPEARANCE:
        yield _compare(comparison, generated, real, resampling, modality)
    yield from _detail(generated, real, resampling, modality)
    yield _diversity(generated, real, resampling, modality)


# -- distances ------------------------------------------------------------------------------------


def _of_extractor(name: str) -> Iterator[_Comparison]:
    def rows(rows: SetRows) -> Tensor:
        return rows.rows[name]

    yield _Comparison("distribution", "frechet_3d", rows, _frechet, 2, _twice, name)
    yield _Comparison(
        "distribution", "frechet_principal", rows, _principal, 2, _twice, name, directions=num_directions
    )
    for axis in range(3):

        def plane(rows: SetRows, axis: int = axis) -> Tensor:
            return rows.planes[name][axis]

        yield _Comparison("distribution", f"frechet_axis{axis}", plane, _frechet, 2, _twice, name)

    def planes(rows: SetRows) -> Tensor:
        return torch.stack([_padded(plane) for plane in rows.planes[name]], dim=1)

    yield _Comparison("distribution", "frechet_2.5d", planes, _frechet_of_planes, 2, _twice, name)
    yield _Comparison("distribution", "kid", rows, _kid, 2, _few, name, least=-math.inf)
    yield _Comparison(
        "distribution", "kid_standardised", rows, _standardised_kid, 2, _few, name, least=-math.inf
    )


def _twice(dimensions: int) -> int:
    # With fewer, what the estimate adds of its own outweighs most differences, and a collapsed set may score better.
    return max(2 * dimensions, FEW)


def _few(dimensions: int) -> int:
    return FEW


def _plain(distance: Callable[[Tensor, Tensor], float]) -> MakeScore:
    def make(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
        return lambda i, j: distance(a[i], b[j])

    return make


def _flat_frechet(a: Tensor, b: Tensor) -> float:
    # Slices of a volume go together: patients are resampled, not slices.
    return frechet_distance(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])).item()


def _mean_frechet(a: Tensor, b: Tensor) -> float:
    planes = zip(a.unbind(1), b.unbind(1), strict=True)
    return sum(_flat_frechet(_unpadded(x), _unpadded(y)) for x, y in planes) / a.shape[1]


def _padded(plane: Tensor) -> Tensor:
    """Bring ``[N S P]`` to MAX_SLICES slices, NaN beyond its own, so that planes can be stacked."""
    return F.pad(plane, (0, 0, 0, MAX_SLICES - plane.shape[1]), value=float("nan"))


def _unpadded(plane: Tensor) -> Tensor:
    return plane[:, ~plane[0].isnan().all(1)]


_frechet = _plain(_flat_frechet)
_frechet_of_planes = _plain(_mean_frechet)


def _principal(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
    def distance(i: Tensor, j: Tensor) -> float:
        patients = min(members[0][i].num_patients, members[1][j].num_patients)
        directions = num_directions(patients, a.shape[1])
        return principal_frechet(a[i], b[j], directions=directions).item()

    return distance


def _kid(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
    own, other, between = polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b)

    def distance(i: Tensor, j: Tensor) -> float:
        both = members[0][i], members[1][j]
        return squared_mmd(own[i][:, i], other[j][:, j], between[i][:, j], members=both)

    return distance


def _standardised_kid(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
    return _kid(*standardised(a, b), members)


def _rows(name: str) -> Pick:
    return lambda rows: rows.rows[name]


_APPEARANCE = (
    _Comparison(
        "distribution", "radiomic_distance", _rows(RADIOMICS), _plain(radiomic_distance), 2, _twice, RADIOMICS
    ),
    _Comparison("appearance", "histogram_distance", _rows(HISTOGRAM), _plain(histogram_distance), 1, _few),
    _Comparison(
        "appearance", "spectrum_distance_db", _rows(SPECTRUM), _plain(spectrum_distance), 1, _few, unit="dB"
    ),
)


def _compare(
    comparison: _Comparison, generated: SetRows, real: SetRows, resampling: Resampling, modality: str
) -> Score:
    a, b = comparison.pick(generated), comparison.pick(real)
    members = _members(generated, real)
    fewest = min(side.num_patients for side in members)
    dimensions = comparison.directions(fewest, a.shape[-1])
    common = {
        "group": comparison.group,
        "metric": comparison.metric,
        "better": comparison.better,
        **_counts(generated, real),
        "modality": modality,
        "extractor": comparison.extractor,
        "dimensions": dimensions,
        "unit": comparison.unit,
    }
    if min(len(a), len(b)) < comparison.fewest:
        return Score(**common, value=float("nan"), reliable=False, note=_needs(comparison.fewest, a, b))
    score = comparison.make(a, b, members)
    wanted = comparison.enough(dimensions)
    reliable = fewest >= wanted
    value = score(torch.arange(len(a)), torch.arange(len(b)))
    interval = score_interval(
        score,
        *members,
        replicates=resampling.replicates,
        seed=resampling.seed,
        least=comparison.least,
    )
    between = comparison.make(b, b, (members[1], members[1]))
    return Score(
        **common,
        value=value,
        interval=interval,
        floor=real_floor(score, between, *members, fewest=comparison.fewest, seed=resampling.seed),
        reliable=reliable,
        note=_notes(
            None
            if reliable
            else f"unreliable below {wanted} patients a set; compare matched with floor only",
            _without_interval(members, interval, resampling),
        ),
    )


# -- neighbourhoods -------------------------------------------------------------------------------

_MANIFOLD = {"precision": "higher", "density": "floor", "recall": "higher", "coverage": "higher"}


def _manifold(
    name: str, generated: SetRows, real: SetRows, resampling: Resampling, modality: str
) -> Iterator[Score]:
    a, b = generated.rows[name], real.rows[name]
    members = _members(generated, real)
    common = {
        "group": "distribution",
        **_counts(generated, real),
        "modality": modality,
        "extractor": name,
        "dimensions": a.shape[-1],
    }
    problem = _needs(NEIGHBOURS + 1, a, b) if min(len(a), len(b)) <= NEIGHBOURS else _lacks_others(members)
    if problem:
        for metric, better in _MANIFOLD.items():
            yield Score(
                **common, metric=metric, better=better, value=float("nan"), reliable=False, note=problem
            )
        return
    samples = compare_manifolds(a, b, members=members)
    ours, floor = _manifold_scores(a, b, members), _manifold_scores(b, b, (members[1], members[1]))
    reliable = min(side.num_patients for side in members) >= FEW
    for metric, better in _MANIFOLD.items():
        # Recall and coverage speak of real volumes, so it is their patients that are drawn.
        own = members[1] if metric in ("recall", "coverage") else members[0]
        # Each volume has a say of its own, so these can be resampled: radii stay those of the sets.
        interval = mean_interval(
            getattr(samples, metric),
            replicates=resampling.replicates,
            seed=resampling.seed,
            patients=own.patients,
            bounds=(0.0, math.inf if metric == "density" else 1.0),
        )
        yield Score(
            **common,
            metric=metric,
            better=better,
            value=samples.means()[metric],
            interval=interval,
            floor=real_floor(
                ours[metric], floor[metric], *members, fewest=NEIGHBOURS + 1, seed=resampling.seed
            ),
            reliable=reliable,
            note=_notes(
                None if reliable else f"unreliable below {FEW} patients a set",
                _without_interval(members, interval, resampling),
            ),
        )


def _lacks_others(members: Both) -> str | None:
    """Return what to say where a volume has too few neighbours of other patients."""
    found = min(int((side.patients[:, None] != side.patients).sum(1).min()) for side in members)
    if found >= NEIGHBOURS:
        return None
    return f"needs {NEIGHBOURS} volumes of other patients beside each volume, got {found}"


def _manifold_scores(a: Tensor, b: Tensor, members: Both) -> dict[str, IndexedScore]:
    own, other, between = pairwise_distances(a, a), pairwise_distances(b, b), pairwise_distances(a, b)

    def score(metric: str) -> IndexedScore:
        def value(i: Tensor, j: Tensor) -> float:
            both = members[0][i], members[1][j]
            if _lacks_others(both) is not None:
                return float("nan")
            found = manifold_of_distances(own[i][:, i], other[j][:, j], between[i][:, j], members=both)
            return getattr(found, metric).mean().item()

        return value

    return {metric: score(metric) for metric in _MANIFOLD}


def _diversity(generated: SetRows, real: SetRows, resampling: Resampling, modality: str) -> Score:
    own, theirs = generated.all_pairs().double(), real.all_pairs().double()
    numbers = generated.all_pair_numbers(), real.all_pair_numbers()
    value = own.nanmean().item()  # NaN without any pair
    twosomes = [len(found.unique()) for found in numbers]
    interval = mean_interval(own, replicates=resampling.replicates, seed=resampling.seed, patients=numbers[0])
    # One figure a set and nothing to divide: the floor is what the real set's own pairs give.
    floor = Floor(value, theirs.nanmean().item(), (twosomes[0], twosomes[1])) if len(theirs) else None
    return Score(
        group="diversity",
        metric="ms_ssim_pairs",
        value=value,
        better="floor",
        **_counts(generated, real),
        modality=modality,
        interval=interval,
        floor=floor,
        reliable=min(twosomes) >= FEW // 2,
        note=_notes(
            f"{len(own)} generated and {len(theirs)} real pairs of one modality, of {twosomes[0]} and {twosomes[1]} "
            "pairs of patients",
            "no interval: it takes 2 pairs of patients"
            if interval is None and resampling.replicates
            else None,
        ),
    )


def _detail(generated: SetRows, real: SetRows, resampling: Resampling, modality: str) -> Iterator[Score]:
    """Yield the noise level and the edge score: what distances of distributions are glad to be given too much of."""
    members = _members(generated, real)
    for k, metric in enumerate(("noise_level", "edge_score")):
        own, theirs = (rows.rows[DETAIL][:, k].double() for rows in (generated, real))
        interval = mean_interval(
            own,
            replicates=resampling.replicates,
            seed=resampling.seed,
            patients=members[0].patients,
            bounds=(0.0, 1.0),
        )
        value = own.mean().item()
        yield Score(
            group="appearance",
            metric=metric,
            value=value,
            better="floor",
            **_counts(generated, real),
            modality=modality,
            interval=interval,
            floor=Floor(value, theirs.mean().item(), (members[0].num_patients, members[1].num_patients)),
            reliable=min(side.num_patients for side in members) >= FEW,
            note=_notes(
                "the floor is that of the real volumes", _without_interval(members, interval, resampling)
            ),
        )


# -- counts and notes -----------------------------------------------------------------------------


def _members(generated: SetRows, real: SetRows) -> Both:
    made, there = number_members(
        *([(entry.patient_id, entry.modality) for entry in rows.entries] for rows in (generated, real))
    )
    return made, there


def _counts(generated: SetRows, real: SetRows) -> dict[str, Any]:
    return {
        "num_generated": len(generated),
        "num_real": len(real),
        "patients_generated": generated.num_patients,
        "patients_real": real.num_patients,
    }


def _without_interval(members: Both, interval: object, resampling: Resampling) -> str | None:
    """Return why there is no interval, None where there is one or none was wanted."""
    if interval is not None or not resampling.replicates:
        return None
    if min(side.num_patients for side in members) < 2:
        return "no interval: it takes 2 patients a set"
    return "no interval: too few patients to draw from"


def _notes(*parts: str | None) -> str | None:
    return "; ".join(part for part in parts if part) or None


def _needs(count: int, a: Tensor, b: Tensor) -> str:
    return f"needs at least {count} volumes of each set, got {len(a)} generated and {len(b)} real"
