"""Scores of a generated set against a real one, from the rows of numbers that are kept of their volumes."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from prod9.evaluation.score_table import Score
from prod9.evaluation.set_distances import (
    APPEARANCE,
    FEW,
    Both,
    Distance,
    denoised_distances,
    distances_of,
    rows_of,
)
from prod9.evaluation.sets import denoised
from prod9.evaluation.sets.intervals import Floor, IndexedScore
from prod9.evaluation.sets.manifold import (
    NEIGHBOURS,
    compare_manifolds,
    manifold_of_distances,
    pairwise_distances,
)
from prod9.evaluation.sets.pair import Resampling, SetPair
from prod9.evaluation.sets.rows import DETAIL, SetRows


def score_sets(
    generated: SetRows, real: SetRows, extractors: Sequence[str], resampling: Resampling
) -> list[Score]:
    """Return all scores over both sets and, where there are several modalities, over each common one.

    Args:
        generated: rows of the generated volumes.
        real: rows of the real volumes.
        extractors: names of the extractors that made the rows.
        resampling: how intervals and floors are drawn.
    """
    everything = SetPair(generated, real, resampling)
    pairs = [everything]
    if len({*generated.modalities, *real.modalities}) > 1:
        pairs += [everything.of(name) for name in generated.modalities if name in real.modalities]
    return [score for pair in pairs for score in _scores(pair, extractors)]


def score_metrics(pair: SetPair, extractor: str, metrics: Collection[str]) -> dict[str, Score]:
    """Return those distances over both sets that ``metrics`` names, and the diversity, by metric.

    Args:
        pair: both sets.
        extractor: name of the extractor that made the rows.
        metrics: names of distances.
    """
    chosen = [one for one in (*distances_of(extractor), *APPEARANCE) if one.metric in metrics]
    scores = [*(_compare(distance, pair) for distance in chosen), _compare_diversity(pair)]
    return {score.metric: score for score in scores}


def _scores(pair: SetPair, extractors: Sequence[str]) -> Iterator[Score]:
    for name in extractors:
        for distance in distances_of(name):
            yield _compare(distance, pair)
        yield from _compare_neighbourhoods(name, pair)
    for distance in APPEARANCE:
        yield _compare(distance, pair)
    yield from _compare_detail(pair)
    if denoised.EDGES in pair.real.rows:
        for distance in denoised_distances(extractors):
            yield _compare(distance, pair)
        yield _compare_ratio(pair, "edge_ratio", "denoised", rows_of(denoised.EDGES))
    yield _compare_diversity(pair)


# -- distances ------------------------------------------------------------------------------------


def _compare(distance: Distance, pair: SetPair) -> Score:
    a, b = distance.pick(pair.generated), distance.pick(pair.real)
    dimensions = distance.directions(pair.fewest_patients, a.shape[-1])
    about = {
        "group": distance.group,
        "metric": distance.metric,
        "better": "lower",
        "extractor": distance.extractor,
        "dimensions": dimensions,
        "unit": distance.unit,
    }
    if min(len(a), len(b)) < distance.fewest:
        return pair.score(_needs(distance.fewest, a, b), **about, value=math.nan, reliable=False)
    score = distance.make(a, b, pair.members)
    wanted = distance.enough(dimensions)
    reliable = pair.fewest_patients >= wanted
    interval = pair.score_interval(score, least=distance.least)
    between_real = distance.make(b, b, (pair.members[1], pair.members[1]))
    doubt = f"unreliable below {wanted} patients per set; compare matched with floor only"
    return pair.score(
        None if reliable else doubt,
        pair.why_no_interval(interval),
        **about,
        value=score(torch.arange(len(a)), torch.arange(len(b))),
        interval=interval,
        floor=pair.floor(score, between_real, fewest=distance.fewest),
        reliable=reliable,
    )


def _needs(count: int, a: Tensor, b: Tensor) -> str:
    return f"needs at least {count} volumes of each set, got {len(a)} generated and {len(b)} real"


# -- neighbourhoods -------------------------------------------------------------------------------

_NEIGHBOURHOOD = {"precision": "higher", "density": "floor", "recall": "higher", "coverage": "higher"}
"""Scores of neighbourhoods, and which way is good."""


def _compare_neighbourhoods(extractor: str, pair: SetPair) -> Iterator[Score]:
    a, b = pair.generated.rows[extractor], pair.real.rows[extractor]
    members = pair.members
    about = {"group": "distribution", "extractor": extractor, "dimensions": a.shape[-1]}
    problem = _needs(NEIGHBOURS + 1, a, b) if min(len(a), len(b)) <= NEIGHBOURS else _lacks_others(members)
    if problem:
        for metric, better in _NEIGHBOURHOOD.items():
            yield pair.score(problem, **about, metric=metric, better=better, value=math.nan, reliable=False)
        return
    samples = compare_manifolds(a, b, members=members)
    ours, real = _scores_by_index(a, b, members), _scores_by_index(b, b, (members[1], members[1]))
    reliable = pair.fewest_patients >= FEW
    for metric, better in _NEIGHBOURHOOD.items():
        # Recall and coverage are means over real volumes, so their patients are drawn. Each volume has a value of
        # its own, so these values can be resampled; the radii stay those of the whole sets.
        own = members[1] if metric in ("recall", "coverage") else members[0]
        bounds = (0.0, math.inf if metric == "density" else 1.0)
        interval = pair.mean_interval(getattr(samples, metric), own.patients, bounds=bounds)
        yield pair.score(
            None if reliable else f"unreliable below {FEW} patients per set",
            pair.why_no_interval(interval),
            **about,
            metric=metric,
            better=better,
            value=samples.means()[metric],
            interval=interval,
            floor=pair.floor(ours[metric], real[metric], fewest=NEIGHBOURS + 1),
            reliable=reliable,
        )


def _lacks_others(members: Both) -> str | None:
    """Return what is wrong where a volume has too few neighbours of other patients."""
    found = min(int((side.patients[:, None] != side.patients).sum(1).min()) for side in members)
    if found >= NEIGHBOURS:
        return None
    return f"needs {NEIGHBOURS} volumes of other patients beside each volume, got {found}"


def _scores_by_index(a: Tensor, b: Tensor, members: Both) -> dict[str, IndexedScore]:
    own, other, between = pairwise_distances(a, a), pairwise_distances(b, b), pairwise_distances(a, b)

    def value(metric: str, i: Tensor, j: Tensor) -> float:
        both = members[0][i], members[1][j]
        if _lacks_others(both) is not None:
            return math.nan
        found = manifold_of_distances(own[i][:, i], other[j][:, j], between[i][:, j], members=both)
        return getattr(found, metric).mean().item()

    return {metric: partial(value, metric) for metric in _NEIGHBOURHOOD}


# -- diversity and detail -------------------------------------------------------------------------


def _compare_diversity(pair: SetPair) -> Score:
    own, theirs = (rows.all_pairs().double() for rows in (pair.generated, pair.real))
    numbers, real_numbers = (rows.all_pair_numbers() for rows in (pair.generated, pair.real))
    twosomes = len(numbers.unique()), len(real_numbers.unique())
    value = own.nanmean().item()  # NaN without any pair
    interval = pair.mean_interval(own, numbers, bounds=(0.0, 1.0))
    absent = interval is None and pair.resampling.replicates
    return pair.score(
        f"{len(own)} generated and {len(theirs)} real pairs of one modality, of {twosomes[0]} and {twosomes[1]} "
        "pairs of patients",
        "no interval: it needs 2 pairs of patients" if absent else None,
        group="diversity",
        metric="ms_ssim_pairs",
        value=value,
        better="floor",
        interval=interval,
        # A set has one value that cannot be divided: the floor is the value of the real set's own pairs.
        floor=Floor(value, theirs.nanmean().item(), twosomes) if len(theirs) else None,
        reliable=min(twosomes) >= FEW // 2,
    )


def _compare_detail(pair: SetPair) -> Iterator[Score]:
    """Yield the noise level and the edge score: too much of both improves distances of distributions."""
    members = pair.members
    for k, metric in enumerate(("noise_level", "edge_score")):
        own, theirs = (rows.rows[DETAIL][:, k].double() for rows in (pair.generated, pair.real))
        interval = pair.mean_interval(own, members[0].patients, bounds=(0.0, 1.0))
        value = own.mean().item()
        yield pair.score(
            "the floor is that of the real volumes",
            pair.why_no_interval(interval),
            group="appearance",
            metric=metric,
            value=value,
            better="floor",
            interval=interval,
            floor=Floor(value, theirs.mean().item(), (members[0].num_patients, members[1].num_patients)),
            reliable=pair.fewest_patients >= FEW,
        )
    yield _compare_ratio(pair, "noise_ratio", "appearance", lambda found: found.rows[DETAIL][:, :1])


def _compare_ratio(pair: SetPair, metric: str, group: str, pick: Callable[[SetRows], Tensor]) -> Score:
    """Return the mean of a column of the generated set over that of the real one; 1 is best.

    Args:
        pair: both sets.
        metric: name of the ratio.
        group: of the table.
        pick: returns the column ``[N 1]`` of a set.
    """
    own, theirs = (pick(rows)[:, 0].double() for rows in (pair.generated, pair.real))

    def ratio(a: Tensor, b: Tensor) -> IndexedScore:
        return lambda i, j: (a[i].mean() / b[j].mean()).item()

    value = ratio(own, theirs)(torch.arange(len(own)), torch.arange(len(theirs)))
    known = math.isfinite(value)
    interval = pair.score_interval(ratio(own, theirs), least=0.0) if known else None
    means = f"{own.mean().item():.3g} in generated, {theirs.mean().item():.3g} in real volumes"
    return pair.score(
        means,
        pair.why_no_interval(interval) if known else "it is 0 in the real volumes",
        group=group,
        metric=metric,
        value=value if known else math.nan,
        better="floor",
        interval=interval,
        floor=pair.floor(ratio(own, theirs), ratio(theirs, theirs), fewest=1) if known else None,
        reliable=pair.fewest_patients >= FEW,
    )
