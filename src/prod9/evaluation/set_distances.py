"""The distances of two sets, from the rows of numbers that are kept of their volumes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.evaluation.judges.features import MAX_SLICES
from prod9.evaluation.sets import denoised
from prod9.evaluation.sets.appearance import (
    RADIOMICS,
    histogram_distance,
    radiomic_distance,
    spectrum_distance,
)
from prod9.evaluation.sets.intervals import IndexedScore
from prod9.evaluation.sets.manifold import polynomial_kernel, squared_mmd, standardised
from prod9.evaluation.sets.members import Members
from prod9.evaluation.sets.rows import HISTOGRAM, SPECTRUM, SetRows
from prod9.measures.metrics import frechet_distance, num_directions
from prod9.measures.resampled import ResampledFrechet

FEW = 20
"""With fewer patients than this, no score is reliable."""

Both = tuple[Members, Members]
MakeScore = Callable[[Tensor, Tensor, Both], IndexedScore]
"""(generated rows, real rows, their patients) → their score, by index."""


def _twice(dimensions: int) -> int:
    # With fewer, the bias of the estimate outweighs most differences, and a collapsed set may score better.
    return max(2 * dimensions, FEW)


def _few(dimensions: int) -> int:
    return FEW


def _plain(distance: Callable[[Tensor, Tensor], float]) -> MakeScore:
    return lambda a, b, members: lambda i, j: distance(a[i], b[j])


def _flat_frechet(a: Tensor, b: Tensor) -> float:
    # Patients are resampled, not slices: the slices of a volume stay together.
    return frechet_distance(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])).item()


def _mean_frechet(a: Tensor, b: Tensor) -> float:
    def own(plane: Tensor) -> Tensor:
        return plane[:, ~plane[0].isnan().all(1)]

    planes = zip(a.unbind(1), b.unbind(1), strict=True)
    return sum(_flat_frechet(own(x), own(y)) for x, y in planes) / a.shape[1]


_frechet = _plain(_flat_frechet)


def _principal(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
    frechet = ResampledFrechet(torch.cat([a, b]))

    def distance(i: Tensor, j: Tensor) -> float:
        patients = min(members[0][i].num_patients, members[1][j].num_patients)
        return frechet(i, j + len(a), directions=num_directions(patients, a.shape[1]))

    return distance


def _kid(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
    own, other, between = polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b)

    def distance(i: Tensor, j: Tensor) -> float:
        both = members[0][i], members[1][j]
        return squared_mmd(own[i][:, i], other[j][:, j], between[i][:, j], members=both)

    return distance


def _standardised_kid(a: Tensor, b: Tensor, members: Both) -> IndexedScore:
    return _kid(*standardised(a, b), members)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance of two sets; 0 is best.

    Attributes:
        metric: its name.
        pick: returns the rows of a set that are compared.
        make: returns the score of these rows.
        group: of the table.
        fewest: volumes that it needs of each set.
        enough: patients that make it reliable, by the number of dimensions.
        extractor: that made the rows.
        unit: of the distance.
        directions: (patients, dimensions) → number of dimensions that are compared.
        least: the lowest possible value.
    """

    metric: str
    pick: Callable[[SetRows], Tensor]
    make: MakeScore = _frechet
    group: str = "distribution"
    fewest: int = 2
    enough: Callable[[int], int] = _twice
    extractor: str | None = None
    unit: str = ""
    directions: Callable[[int, int], int] = lambda patients, dimensions: dimensions
    least: float = 0.0


def rows_of(name: str) -> Callable[[SetRows], Tensor]:
    """Return what picks the rows ``name`` of a set."""
    return lambda found: found.rows[name]


def _plane(name: str, axis: int) -> Callable[[SetRows], Tensor]:
    return lambda found: found.planes[name][axis]


def _stacked_planes(name: str) -> Callable[[SetRows], Tensor]:
    def stacked(found: SetRows) -> Tensor:
        # Axes differ in their number of slices: NaN fills up to MAX_SLICES.
        return torch.stack(
            [
                F.pad(plane, (0, 0, 0, MAX_SLICES - plane.shape[1]), value=math.nan)
                for plane in found.planes[name]
            ],
            dim=1,
        )

    return stacked


def distances_of(extractor: str) -> list[Distance]:
    """Return the distances of the features that ``extractor`` makes."""
    distance, rows = partial(Distance, extractor=extractor), rows_of(extractor)
    return [
        distance(metric="frechet_3d", pick=rows),
        distance(metric="frechet_principal", pick=rows, make=_principal, directions=num_directions),
        *(distance(metric=f"frechet_axis{axis}", pick=_plane(extractor, axis)) for axis in range(3)),
        distance(metric="frechet_2.5d", pick=_stacked_planes(extractor), make=_plain(_mean_frechet)),
        distance(metric="kid", pick=rows, make=_kid, enough=_few, least=-math.inf),
        distance(metric="kid_standardised", pick=rows, make=_standardised_kid, enough=_few, least=-math.inf),
    ]


APPEARANCE = (
    Distance(
        metric="radiomic_distance",
        pick=rows_of(RADIOMICS),
        make=_plain(radiomic_distance),
        extractor=RADIOMICS,
    ),
    Distance(
        metric="histogram_distance",
        pick=rows_of(HISTOGRAM),
        make=_plain(histogram_distance),
        group="appearance",
        fewest=1,
        enough=_few,
    ),
    Distance(
        metric="spectrum_distance_db",
        pick=rows_of(SPECTRUM),
        make=_plain(spectrum_distance),
        group="appearance",
        fewest=1,
        enough=_few,
        unit="dB",
    ),
)


def denoised_distances(extractors: Sequence[str]) -> Iterator[Distance]:
    """Yield the distances of volumes that were denoised alike, beside those of the volumes as they are."""
    for name in extractors:
        for distance in distances_of(name):
            if distance.metric in ("kid", "kid_standardised"):
                yield _of_denoised(distance, denoised.name_denoised(name))
    by_metric = {distance.metric: distance for distance in APPEARANCE}
    yield _of_denoised(by_metric["radiomic_distance"], denoised.name_denoised(RADIOMICS))
    yield _of_denoised(by_metric["spectrum_distance_db"], denoised.SPECTRUM)


def _of_denoised(distance: Distance, rows: str) -> Distance:
    return replace(distance, metric=f"{distance.metric}_denoised", pick=rows_of(rows), group="denoised")
