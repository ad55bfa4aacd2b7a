"""Distances of a set of generated volumes to real ones.

Patients are drawn and counted, not volumes. If the classes (modalities) of all sets are known, sets are compared within
each class: across classes, a distance would measure the modalities, and the volumes of one patient are not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.evaluation.sets.diversity import DiversityRatio as DiversityRatio
from prod9.evaluation.sets.diversity import compare_diversity as compare_diversity
from prod9.evaluation.sets.diversity import diversity_ratio as diversity_ratio
from prod9.evaluation.sets.intervals import Interval, score_interval
from prod9.evaluation.sets.manifold import standardised_kid
from prod9.evaluation.sets.members import Members, Owners, members_of
from prod9.measures.metrics import num_directions
from prod9.measures.resampled import ResampledFrechet
from prod9.types import Label

Features = Float[Tensor, "N D"]
Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class FrechetRatio:
    """``ratio`` = ``distance`` / ``floor``; 1 means as near to held-out volumes as the training set is.

    Both are means over classes of the Fréchet distance in a number of principal directions. In all dimensions, a set of
    less variety would score better as long as there are fewer volumes than features. The estimate depends on N, so both
    compare equally many volumes with the held-out ones.

    Attributes:
        distance: of the generated set to the held-out one.
        floor: distance of the training set to the held-out one.
        num_samples: volumes of the generated set, and of each subset of the training set.
        num_reference: held-out volumes.
        dimensions: principal directions that are compared.
        features: all dimensions of the features.
        num_patients: patients of the smallest class.
        interval: of the ratio, with resampled patients.
    """

    distance: float
    floor: float
    num_samples: int
    num_reference: int
    dimensions: int
    features: int
    num_patients: int
    interval: Interval | None = None

    @property
    def ratio(self) -> float:
        """Distance of the generated set over that of the training set; NaN where the latter is 0."""
        return self.distance / self.floor if self.floor > 0 else float("nan")

    @property
    def reliable(self) -> bool:
        """Whether there are at least twice as many patients as dimensions."""
        return self.num_patients >= 2 * self.dimensions


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased kernel distance to held-out volumes, and that of equally many training volumes (about 0).

    It is a mean over classes, of all features, standardised by the held-out set; ``interval`` is that of ``distance``.
    """

    distance: float
    floor: float
    num_patients: int
    features: int
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """Features of a set ``[N D]``, or their numbers in a table ``[N]``, the class of each row and its patient."""

    rows: Tensor
    labels: Label
    members: Members

    def __getitem__(self, rows: Tensor) -> "Sample":
        """Return some of the rows, which may repeat."""
        return Sample(self.rows[rows], self.labels[rows], self.members[rows])

    def of(self, label: int) -> "Sample":
        """Return the rows of one class."""
        return self[(self.labels == label).nonzero().flatten()]


def sample(rows: Features, labels: Label | None = None, patients: Owners | None = None) -> Sample:
    """Return features with their classes, by default all the same, and patients, by default all different."""
    labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else labels
    return Sample(rows, labels, members_of(labels, patients))


def frechet_ratio(
    generated: Features,
    training: Features,
    held_out: Features,
    *,
    generator: torch.Generator,
    generated_labels: Label | None = None,
    training_labels: Label | None = None,
    held_out_labels: Label | None = None,
    training_patients: Owners | None = None,
    held_out_patients: Owners | None = None,
    draws: int = 8,
    replicates: int = 0,
) -> FrechetRatio:
    """Compare generated with held-out features, relative to training against held-out features.

    The floor is a mean over subsets of the training set that have the size of the generated set, and its number of
    volumes in each class if labels are given. Raises ValueError where the training set is too small for them.

    Args:
        generated: features of volumes that are independent of each other.
        training: features of the training set.
        held_out: features of patients that no model saw.
        generator: draws the subsets.
        generated_labels: classes; for both of the first two sets or for neither.
        training_labels: classes of the training set.
        held_out_labels: with these, distances are means over the classes of the generated set, each computed within a
            class; without them, all classes are one set.
        training_patients: number of each volume's patient; by default all differ.
        held_out_patients: number of each held-out volume's patient; by default all differ.
        draws: subsets that the floor averages.
        replicates: bootstrap samples for the interval, 0 for none.
    """
    if (generated_labels is None) != (training_labels is None):
        raise ValueError("labels: expected them for both sets or for neither, got one; pass the other too")
    made = sample(generated, generated_labels)
    reference = sample(training, training_labels, training_patients)
    real = sample(held_out, held_out_labels, held_out_patients)
    within = held_out_labels is not None and generated_labels is not None
    subsets = matching_subsets(reference, made, generator, draws)
    seed = int(torch.randint(2**31, (), generator=generator))
    return _compare_frechet(made, subsets, real, within=within, replicates=replicates, seed=seed)


def _compare_frechet(
    made: Sample, subsets: Sequence[Sample], real: Sample, *, within: bool, replicates: int, seed: int
) -> FrechetRatio:
    patients = fewest_patients(made, real, within=within)
    num_features = made.rows.shape[1]
    directions = num_directions(patients, num_features)
    frechet, (made, real, *subsets) = _numbered(made, real, *subsets)

    def distance(a: Tensor, b: Tensor) -> float:
        return frechet(a, b, directions=directions)

    def to_training(rows: Tensor) -> float:
        found = [class_mean(distance, subset, real[rows], within=within) for subset in subsets]
        return sum(found) / len(found)

    def ratio(i: Tensor, j: Tensor) -> float:
        # The choice of held-out patients changes both distances: they are drawn for both at once.
        try:
            return class_mean(distance, made[i], real[j], within=within) / to_training(j)
        except (ValueError, ZeroDivisionError):  # too few rows of a class were drawn
            return float("nan")

    return FrechetRatio(
        distance=class_mean(distance, made, real, within=within),
        floor=to_training(torch.arange(len(real.rows))),
        num_samples=len(made.rows),
        num_reference=len(real.rows),
        dimensions=directions,
        features=num_features,
        num_patients=patients,
        interval=score_interval(
            ratio, made.members, real.members, replicates=replicates, seed=seed, least=0.0
        ),
    )


def _numbered(*samples: Sample) -> tuple[ResampledFrechet, list[Sample]]:
    """Return the distance of rows by their numbers, and the samples with numbers in place of features."""
    numbers = torch.arange(sum(len(one.rows) for one in samples)).split([len(one.rows) for one in samples])
    known = ResampledFrechet(torch.cat([one.rows for one in samples]))
    pairs = zip(samples, numbers, strict=True)
    return known, [replace(one, rows=own) for one, own in pairs]


def compare_kernels(
    made: Sample,
    training: Sample,
    real: Sample,
    *,
    generator: torch.Generator,
    draws: int = 8,
    replicates: int = 0,
) -> KernelDistance:
    """Return the kernel distance of ``made`` to ``real`` within classes, and that of equally many training volumes.

    Args:
        made: the generated set.
        training: the training set.
        real: held-out patients.
        generator: draws the subsets of the training set.
        draws: number of these subsets.
        replicates: bootstrap samples for the interval, 0 for none.
    """

    def score(one: Sample, other: Sample) -> float:
        found = [
            standardised_kid(a.rows, b.rows, members=(a.members, b.members))
            for a, b in ((one.of(k), other.of(k)) for k in made.labels.unique().tolist())
        ]
        return sum(found) / len(found)

    def drawn(i: Tensor, j: Tensor) -> float:
        try:
            return score(made[i], real[j])
        except ValueError:  # too few rows of a class were drawn
            return float("nan")

    subsets = matching_subsets(training, made, generator, draws)
    seed = int(torch.randint(2**31, (), generator=generator))
    return KernelDistance(
        distance=score(made, real),
        floor=sum(score(subset, real) for subset in subsets) / draws,
        num_patients=fewest_patients(made, real, within=True),
        features=made.rows.shape[1],
        interval=score_interval(drawn, made.members, real.members, replicates=replicates, seed=seed),
    )


def class_mean(distance: Distance, a: Sample, b: Sample, *, within: bool) -> float:
    """Return the mean distance over the classes of ``a``; unless ``within`` classes, the distance of all rows."""
    if not within:
        return distance(a.rows, b.rows)
    found = [distance(a.of(label).rows, b.of(label).rows) for label in a.labels.unique().tolist()]
    return sum(found) / len(found)


def fewest_patients(a: Sample, b: Sample, *, within: bool) -> int:
    """Return the number of patients of the smaller set; ``within`` classes, that of the smallest class."""
    if not within:
        return min(a.members.num_patients, b.members.num_patients)
    labels = a.labels.unique().tolist()
    return min(part.of(label).members.num_patients for part in (a, b) for label in labels)


def matching_subsets(
    available: Sample, wanted: Sample, generator: torch.Generator, draws: int
) -> list[Sample]:
    """Draw subsets of ``available`` with as many of each class as ``wanted``, of different patients if possible."""
    return [available[_matching_rows(available, wanted.labels, generator)] for _ in range(draws)]


def _matching_rows(available: Sample, wanted: Label, generator: torch.Generator) -> Tensor:
    """Draw rows without replacement: one of each patient, then a second one of each, and so on."""
    rows = []
    for label in wanted.unique().tolist():
        candidates = (available.labels == label).nonzero().flatten()
        count = int((wanted == label).sum())
        if count > len(candidates):
            raise ValueError(
                f"expected at least {count} volumes of class {label} in the training set, got {len(candidates)}; score "
                "fewer generated volumes"
            )
        shuffled = candidates[torch.randperm(len(candidates), generator=generator)]
        owners = available.members.patients[shuffled]
        turns = torch.stack([(owners[:k] == owner).sum() for k, owner in enumerate(owners)])
        rows.append(shuffled[turns.argsort(stable=True)[:count]])
    return torch.cat(rows)
