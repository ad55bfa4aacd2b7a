"""Scores of a generated set against a real one, from what :mod:`prod9.evaluation.rows` kept of both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.evaluation.appearance import (
    RADIOMICS,
    histogram_distance,
    radiomic_distance,
    spectrum_distance,
)
from prod9.evaluation.features import MAX_SLICES
from prod9.evaluation.intervals import (
    Floor,
    IndexedScore,
    mean_interval,
    real_floor,
    score_interval,
)
from prod9.evaluation.manifold import (
    NEIGHBOURS,
    compare_manifolds,
    manifold_of_distances,
    pairwise_distances,
    polynomial_kernel,
    squared_mmd,
)
from prod9.evaluation.rows import HISTOGRAM, SPECTRUM, SetRows
from prod9.evaluation.score_table import Score
from prod9.training.metrics import frechet_distance

ALL = "all"
FEW = 20
"""Fewer volumes than this say little, whatever the score."""

Pick = Callable[[SetRows], Tensor]
MakeScore = Callable[[Tensor, Tensor], IndexedScore]
"""(generated rows, real rows) → their score, by index."""


@dataclass(frozen=True)
class _Comparison:
    """A distance of two sets. fewest: volumes needed of each; enough(D): those it takes to rely on it."""

    group: str
    metric: str
    pick: Pick
    make: MakeScore
    fewest: int
    enough: Callable[[int], int]
    extractor: str | None = None
    better: str = "lower"
    unit: str = ""


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
    yield _diversity(generated, real, resampling, modality)


# -- distances ------------------------------------------------------------------------------------


def _of_extractor(name: str) -> Iterator[_Comparison]:
    def rows(rows: SetRows) -> Tensor:
        return rows.rows[name]

    yield _Comparison("distribution", "frechet_3d", rows, _frechet, 2, _twice, name)
    for axis in range(3):

        def plane(rows: SetRows, axis: int = axis) -> Tensor:
            return rows.planes[name][axis]

        yield _Comparison("distribution", f"frechet_axis{axis}", plane, _frechet, 2, _few, name)

    def planes(rows: SetRows) -> Tensor:
        return torch.stack([_padded(plane) for plane in rows.planes[name]], dim=1)

    yield _Comparison("distribution", "frechet_2.5d", planes, _frechet_of_planes, 2, _few, name)
    yield _Comparison("distribution", "kid", rows, _kid, 2, _few, name)


def _twice(dimensions: int) -> int:
    # With fewer, what the estimate adds of its own outweighs most differences.
    return max(2 * dimensions, FEW)


def _few(dimensions: int) -> int:
    return FEW


def _plain(distance: Callable[[Tensor, Tensor], float]) -> MakeScore:
    def make(a: Tensor, b: Tensor) -> IndexedScore:
        return lambda i, j: distance(a[i], b[j])

    return make


def _flat_frechet(a: Tensor, b: Tensor) -> float:
    # Slices of a volume go together: volumes are resampled, not slices.
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


def _kid(a: Tensor, b: Tensor) -> IndexedScore:
    own, other, between = polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b)
    return lambda i, j: squared_mmd(own[i][:, i], other[j][:, j], between[i][:, j])


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
    common = {
        "group": comparison.group,
        "metric": comparison.metric,
        "better": comparison.better,
        "num_generated": len(a),
        "num_real": len(b),
        "modality": modality,
        "extractor": comparison.extractor,
        "dimensions": a.shape[-1],
        "unit": comparison.unit,
    }
    if min(len(a), len(b)) < comparison.fewest:
        return Score(**common, value=float("nan"), reliable=False, note=_needs(comparison.fewest, a, b))
    score, counts = comparison.make(a, b), (len(a), len(b))
    wanted = comparison.enough(a.shape[-1])
    reliable = min(counts) >= wanted
    return Score(
        **common,
        value=score(torch.arange(len(a)), torch.arange(len(b))),
        interval=score_interval(score, *counts, replicates=resampling.replicates, seed=resampling.seed),
        floor=real_floor(
            score, comparison.make(b, b), *counts, fewest=comparison.fewest, seed=resampling.seed
        ),
        reliable=reliable,
        note=None
        if reliable
        else f"unreliable below {wanted} volumes a set; compare matched with floor only",
    )


# -- neighbourhoods -------------------------------------------------------------------------------

_MANIFOLD = {"precision": "higher", "density": "floor", "recall": "higher", "coverage": "higher"}


def _manifold(
    name: str, generated: SetRows, real: SetRows, resampling: Resampling, modality: str
) -> Iterator[Score]:
    a, b = generated.rows[name], real.rows[name]
    common = {
        "group": "distribution",
        "num_generated": len(a),
        "num_real": len(b),
        "modality": modality,
        "extractor": name,
        "dimensions": a.shape[-1],
    }
    if min(len(a), len(b)) <= NEIGHBOURS:
        for metric, better in _MANIFOLD.items():
            note = _needs(NEIGHBOURS + 1, a, b)
            yield Score(**common, metric=metric, better=better, value=float("nan"), reliable=False, note=note)
        return
    samples, counts = compare_manifolds(a, b), (len(a), len(b))
    ours, floor = _manifold_scores(a, b), _manifold_scores(b, b)
    reliable = min(counts) >= FEW
    for metric, better in _MANIFOLD.items():
        yield Score(
            **common,
            metric=metric,
            better=better,
            value=samples.means()[metric],
            # Each volume has a say of its own, so these can be resampled: radii stay those of the sets.
            interval=mean_interval(
                getattr(samples, metric), replicates=resampling.replicates, seed=resampling.seed
            ),
            floor=real_floor(
                ours[metric], floor[metric], *counts, fewest=NEIGHBOURS + 1, seed=resampling.seed
            ),
            reliable=reliable,
            note=None if reliable else f"unreliable below {FEW} volumes a set",
        )


def _manifold_scores(a: Tensor, b: Tensor) -> dict[str, IndexedScore]:
    own, other, between = pairwise_distances(a, a), pairwise_distances(b, b), pairwise_distances(a, b)

    def score(metric: str) -> IndexedScore:
        def value(i: Tensor, j: Tensor) -> float:
            found = manifold_of_distances(own[i][:, i], other[j][:, j], between[i][:, j])
            return getattr(found, metric).mean().item()

        return value

    return {metric: score(metric) for metric in _MANIFOLD}


def _diversity(generated: SetRows, real: SetRows, resampling: Resampling, modality: str) -> Score:
    own, theirs = generated.all_pairs().double(), real.all_pairs().double()
    value = own.mean().item()  # NaN without any pair
    return Score(
        group="diversity",
        metric="ms_ssim_pairs",
        value=value,
        better="floor",
        num_generated=len(generated),
        num_real=len(real),
        modality=modality,
        interval=mean_interval(own, replicates=resampling.replicates, seed=resampling.seed),
        floor=Floor(value, theirs.mean().item(), (len(own), len(theirs))) if len(theirs) else None,
        reliable=min(len(own), len(theirs)) >= FEW // 2,
        note=f"{len(own)} generated and {len(theirs)} real pairs of one modality",
    )


def _needs(count: int, a: Tensor, b: Tensor) -> str:
    return f"needs at least {count} volumes of each set, got {len(a)} generated and {len(b)} real"
