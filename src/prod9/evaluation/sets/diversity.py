"""How varied a set of volumes is: the mean distance of its pairs over that of held-out volumes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prod9.evaluation.sets.intervals import Interval, score_interval
from prod9.evaluation.sets.members import Members, Owners, members_of
from prod9.types import Label, Volume


class _PairwiseDistances:
    """Root-mean-square intensity differences of the volumes of one set, within each class."""

    def __init__(self, volumes: Volume, labels: Label, members: Members, classes: Sequence[int]) -> None:
        self.labels, self.members, self.classes = labels, members, classes
        inside = {k: labels == k for k in classes}
        self.distances = {}
        for k, own in inside.items():
            flat = volumes[own].flatten(1)
            distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
            self.distances[k] = distances / flat.shape[1] ** 0.5
        # Place of each volume among those of its class.
        self.places = torch.stack([own.cumsum(0) * own for own in inside.values()]).sum(0) - 1

    @property
    def fewest_patients(self) -> int:
        """Patients of the class that has fewest."""
        return min(self.members[self.labels == k].num_patients for k in self.classes)

    def total(self, rows: Tensor) -> float:
        """Return the mean over pairs of patients of ``rows``, summed over classes."""
        result = 0.0
        for k in self.classes:
            own = rows[self.labels[rows] == k]
            place, owners = self.places[own], self.members[own]
            weight = owners.weights[:, None] * owners.weights
            weight = weight * (owners.patients[:, None] != owners.patients)
            distances = self.distances[k][place][:, place].double()
            result += ((distances * weight).sum() / weight.sum()).item()
        return result


@dataclass(frozen=True)
class DiversityRatio:
    """Mean pairwise distance of one set over that of held-out volumes, with its interval over patients of both."""

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

    1 is as diverse as reality, 0 means that all volumes are equal. Pairs across classes, which would measure the
    modalities, and pairs of one patient are left out. Each class counts once.

    Args:
        volumes: the set that is scored, in [0, 1].
        held_out: volumes of patients that no model saw.
        labels: classes of ``volumes``.
        held_out_labels: classes of ``held_out``.
        patients: number of each volume's patient; by default all differ.
        held_out_patients: number of each held-out volume's patient; by default all differ.
        replicates: bootstrap samples for the interval, 0 for none.
        seed: of the draws.
    """
    classes = labels.unique().tolist()
    made = _PairwiseDistances(volumes, labels, members_of(labels, patients), classes)
    owners = members_of(held_out_labels, held_out_patients)
    real = _PairwiseDistances(held_out, held_out_labels, owners, classes)
    fewest = min(made.fewest_patients, real.fewest_patients)
    if fewest < 2:
        raise ValueError(
            f"expected volumes of at least 2 patients in each class to make pairs, got {fewest}; generate more"
        )

    def ratio(i: Tensor, j: Tensor) -> float:
        below = real.total(j)
        return made.total(i) / below if below > 0 else float("nan")

    return DiversityRatio(
        ratio(torch.arange(len(volumes)), torch.arange(len(held_out))),
        score_interval(ratio, made.members, real.members, replicates=replicates, seed=seed, least=0.0),
    )


def diversity_ratio(
    generated: Volume, held_out: Volume, *, generated_labels: Label, held_out_labels: Label
) -> float:
    """Return the ratio of :func:`compare_diversity` for volumes of which each shows another patient."""
    compared = compare_diversity(
        generated, held_out, labels=generated_labels, held_out_labels=held_out_labels
    )
    return compared.ratio
