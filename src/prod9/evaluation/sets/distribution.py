"""Scores of a set of generated volumes against real ones: distance of distributions, and diversity.

Patients are what is drawn and counted. Where the classes (modalities) of all sets are known, sets are compared within
them: across classes a distance is that of the modalities, and the volumes of a patient are no independent samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from prod9.evaluation.sets.intervals import Interval, score_interval
from prod9.evaluation.sets.manifold import standardised_kid
from prod9.evaluation.sets.members import Members, as_members
from prod9.measures.metrics import num_directions, principal_frechet
from prod9.types import Label, Volume

Features = Float[Tensor, "N D"]
Owners = Int64[Tensor, " N"]
Distance = Callable[[Features, Features], float]


@dataclass(frozen=True)
class FrechetRatio:
    """``ratio`` = ``distance`` / ``floor``; 1 means as near to held-out volumes as the training set is.

    Both are means over classes of the Fréchet distance in ``dimensions`` principal directions: in all ``features``
    of them a set of less variety would score better, as long as there are fewer volumes than features. Both
    compare ``num_samples`` volumes with ``num_reference`` held-out ones, of ``num_patients`` patients or more a
    class, since the estimate depends on N. interval: of the ratio, patients resampled.
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
        """Distance of the generated set over that of the training set; NaN where that is 0."""
        return self.distance / self.floor if self.floor > 0 else float("nan")

    @property
    def reliable(self) -> bool:
        """Whether there are twice as many patients as dimensions."""
        return self.num_patients >= 2 * self.dimensions


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased kernel distance to held-out volumes, and that of as many training volumes (about 0).

    Of all ``features``, standardised by the held-out set, a mean over classes. interval: of ``distance``.
    """

    distance: float
    floor: float
    num_patients: int
    features: int
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """Features of a set ``[N D]``, the class of each row and its patient."""

    rows: Features
    labels: Label
    members: Members

    def __getitem__(self, rows: Tensor) -> "Sample":
        """Return some of the rows, which may repeat."""
        return Sample(self.rows[rows], self.labels[rows], self.members[rows])

    def of(self, label: int) -> "Sample":
        """Return the rows of one class."""
        return self[(self.labels == label).nonzero().flatten()]


def sample(rows: Features, labels: Label | None = None, patients: Owners | None = None) -> Sample:
    """Return features with their classes, all of one by default, and patients, by default one a row."""
    labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else labels
    owners = torch.arange(len(rows)) if patients is None else patients
    return Sample(rows, labels, Members(owners, labels))


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
    """Compare generated with held-out features, by the yardstick of training against held-out ones.

    The floor is a mean over ``draws`` subsets of the training set of the generated set's size, with its
    class counts where labels are given. ValueError where the training set cannot supply them.

    Args:
        generated: features of volumes that are independent of each other.
        training: features of the training set.
        held_out: features of patients that no model saw.
        generator: draws the subsets.
        generated_labels: classes; for both of the first sets or for neither.
        training_labels: the same of the training set.
        held_out_labels: with these, distances are means over the classes of the generated set, each within its
            class; without, all classes are one set.
        training_patients: whose each volume is; by default each is a patient's only one.
        held_out_patients: the same of the held-out set.
        draws: subsets that the floor averages.
        replicates: bootstrap samples for the interval, 0 for none.
    """
    if (generated_labels is None) != (training_labels is None):
        raise ValueError("labels must be given for both sets or for neither, got one; pass the other too")
    made = sample(generated, generated_labels)
    real = sample(held_out, held_out_labels, held_out_patients)
    within = held_out_labels is not None and generated_labels is not None
    patients = fewest_patients(made, real, within=within)
    directions = num_directions(patients, generated.shape[1])

    def distance(a: Features, b: Features) -> float:
        return principal_frechet(a, b, directions=directions).item()

    subsets = matching_subsets(sample(training, training_labels, training_patients), made, generator, draws)

    def to_training(rows: Tensor) -> float:
        found = [class_mean(distance, subset, real[rows], within=within) for subset in subsets]
        return sum(found) / len(found)

    def ratio(i: Tensor, j: Tensor) -> float:
        # Which patients were held out moves both distances: they are drawn for both at once.
        try:
            return class_mean(distance, made[i], real[j], within=within) / to_training(j)
        except (ValueError, ZeroDivisionError):  # a class that was hardly drawn
            return float("nan")

    seed = int(torch.randint(2**31, (), generator=generator))
    return FrechetRatio(
        distance=class_mean(distance, made, real, within=within),
        floor=to_training(torch.arange(len(held_out))),
        num_samples=len(generated),
        num_reference=len(held_out),
        dimensions=directions,
        features=generated.shape[1],
        num_patients=patients,
        interval=score_interval(
            ratio, made.members, real.members, replicates=replicates, seed=seed, least=0.0
        ),
    )


def compare_kernels(
    made: Sample,
    training: Sample,
    real: Sample,
    *,
    generator: torch.Generator,
    draws: int = 8,
    replicates: int = 0,
) -> KernelDistance:
    """Return the kernel distance of ``made`` to ``real``, within classes, and that of as many training volumes."""

    def score(one: Sample, other: Sample) -> float:
        found = [
            standardised_kid(a.rows, b.rows, members=(a.members, b.members))
            for a, b in ((one.of(k), other.of(k)) for k in made.labels.unique().tolist())
        ]
        return sum(found) / len(found)

    def drawn(i: Tensor, j: Tensor) -> float:
        try:
            return score(made[i], real[j])
        except ValueError:  # a class that was hardly drawn
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
    """Return the mean distance over the classes of ``a``; that of everything unless ``within`` them."""
    if not within:
        return distance(a.rows, b.rows)
    found = [distance(a.of(label).rows, b.of(label).rows) for label in a.labels.unique().tolist()]
    return sum(found) / len(found)


def fewest_patients(a: Sample, b: Sample, *, within: bool) -> int:
    """Return the number of patients of the smaller set; of the class that has fewest, ``within`` classes."""
    if not within:
        return min(a.members.num_patients, b.members.num_patients)
    labels = a.labels.unique().tolist()
    return min(part.of(label).members.num_patients for part in (a, b) for label in labels)


def matching_subsets(
    available: Sample, wanted: Sample, generator: torch.Generator, draws: int
) -> list[Sample]:
    """Draw subsets of ``available`` with as many of each class as ``wanted``, of different patients if there are."""
    return [available[_matching_rows(available, wanted.labels, generator)] for _ in range(draws)]


def _matching_rows(available: Sample, wanted: Label, generator: torch.Generator) -> Tensor:
    """Draw rows without replacement, one patient after the other; a second time when all have been drawn."""
    rows = []
    for label in wanted.unique().tolist():
        candidates = (available.labels == label).nonzero().flatten()
        count = int((wanted == label).sum())
        if count > len(candidates):
            raise ValueError(
                f"the training set must hold at least {count} volumes of class {label}, "
                f"got {len(candidates)}; score fewer generated volumes"
            )
        shuffled = candidates[torch.randperm(len(candidates), generator=generator)]
        owners = available.members.patients[shuffled]
        turns = torch.stack([(owners[:k] == owner).sum() for k, owner in enumerate(owners)])
        rows.append(shuffled[turns.argsort(stable=True)[:count]])
    return torch.cat(rows)


def mean_pairwise_distance(volumes: Volume, *, patients: Owners | None = None) -> float:
    """Return the root-mean-square intensity difference of two volumes, averaged over all pairs of patients.

    patients: whose each volume is; by default each is a patient's only one.
    """
    owners = as_members(len(volumes) if patients is None else patients)
    if owners.num_patients < 2:
        raise ValueError(
            f"pairs need volumes of at least 2 patients, got {owners.num_patients}; generate more"
        )
    return _mean_over_pairs(_distances(volumes), owners).item()


def _distances(volumes: Volume) -> Float[Tensor, "N N"]:
    flat = volumes.flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5


def _mean_over_pairs(distances: Tensor, owners: Members) -> Tensor:
    weight = owners.weights[:, None] * owners.weights * (owners.patients[:, None] != owners.patients)
    return (distances.double() * weight).sum() / weight.sum()


@dataclass(frozen=True)
class DiversityRatio:
    """Mean pairwise distance of one set over that of held-out volumes. interval: patients of both resampled."""

    ratio: float
    interval: Interval | None = None


def compare_diversity(
    volumes: Volume,
    held_out: Volume,
    *,
    labels: Label,
    held_out_labels: Label,
    patients: Owners | None = None,
    held_out_patients: Owners | None = None,
    replicates: int = 0,
    seed: int = 0,
) -> DiversityRatio:
    """Return the mean pairwise distance of ``volumes`` over that of held-out ones, within classes.

    1 is as diverse as reality, 0 one volume over and over. Pairs across classes are left out: their distance
    is that of the modalities, and so are pairs of one patient. Each class counts once.

    Args:
        volumes: of the judged set, in [0, 1].
        held_out: of patients that no model saw.
        labels: classes of ``volumes``.
        held_out_labels: classes of ``held_out``.
        patients: whose each volume is; by default each is a patient's only one.
        held_out_patients: the same of ``held_out``.
        replicates: bootstrap samples for the interval, 0 for none.
        seed: of the draws.
    """
    sides = [
        (own, sample(volumes, own, patients).members, volumes)
        for own, volumes, patients in (
            (labels, volumes, patients),
            (held_out_labels, held_out, held_out_patients),
        )
    ]
    classes = labels.unique().tolist()
    fewest = min(owners[found == k].num_patients for found, owners, _ in sides for k in classes)
    if fewest < 2:
        raise ValueError(
            f"pairs need volumes of at least 2 patients in each class, got {fewest}; generate more"
        )
    known = [{k: _distances(own[found == k]) for k in classes} for found, _, own in sides]
    # Place of each volume among those of its class.
    places = [
        torch.stack([(found == k).cumsum(0) * (found == k) for k in classes]).sum(0) - 1
        for found, _, _ in sides
    ]

    def total(side: int, rows: Tensor) -> float:
        found, owners, _ = sides[side]
        result = 0.0
        for k in classes:
            own = rows[found[rows] == k]
            place = places[side][own]
            result += _mean_over_pairs(known[side][k][place][:, place], owners[own]).item()
        return result

    def ratio(i: Tensor, j: Tensor) -> float:
        below = total(1, j)
        return total(0, i) / below if below > 0 else float("nan")

    everything = [torch.arange(len(own)) for _, _, own in sides]
    return DiversityRatio(
        ratio(everything[0], everything[1]),
        score_interval(ratio, sides[0][1], sides[1][1], replicates=replicates, seed=seed, least=0.0),
    )


def diversity_ratio(
    generated: Volume, held_out: Volume, *, generated_labels: Label, held_out_labels: Label
) -> float:
    """Return :func:`compare_diversity` of volumes that are each a patient's only one of their class."""
    compared = compare_diversity(
        generated, held_out, labels=generated_labels, held_out_labels=held_out_labels
    )
    return compared.ratio
