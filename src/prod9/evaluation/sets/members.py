"""Patients and modalities of the rows of a set: statistics count patients, not volumes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

Owners = Int64[Tensor, " N"]


@dataclass(frozen=True, eq=False)
class Members:
    """The patient and the modality of each of ``N`` rows, as numbers.

    Attributes:
        patients: number of each row's patient. Sets that are compared share their numbers (:func:`number_members`).
        kinds: number of each row's modality.
        weights: of each row where each patient counts once; by default 1 over the number of the patient's rows.

    Example:
        >>> import torch
        >>> from prod9.evaluation.sets.members import Members
        >>> Members(patients=torch.tensor([4, 4, 7]), kinds=torch.tensor([0, 1, 0])).num_patients
        2
    """

    patients: Owners
    kinds: Owners
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.patients):
            _, places, counts = self.patients.unique(return_inverse=True, return_counts=True)
            object.__setattr__(self, "weights", 1.0 / counts[places].double())

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.patients)

    @property
    def num_patients(self) -> int:
        """Return how many different patients there are."""
        return len(self.patients.unique())

    def rows_by_patient(self) -> list[Tensor]:
        """Return the rows of each patient, in the order of the patients' numbers."""
        if not len(self):
            return []
        order = self.patients.argsort(stable=True)
        counts = self.patients[order].unique_consecutive(return_counts=True)[1]
        return list(order.split(counts.tolist()))

    def strata(self) -> list[list[Tensor]]:
        """Return groups of patients' rows; a bootstrap draws from each group separately.

        If each patient has volumes of one modality only, as volumes generated for a label do, there is one group per
        modality, because the size of each was chosen and not drawn. Otherwise all patients are one group.
        """
        rows = self.rows_by_patient()
        kinds = [self.kinds[own].unique() for own in rows]
        if any(len(own) > 1 for own in kinds):
            return [rows]
        groups: dict[int, list[Tensor]] = {}
        for own, kind in zip(rows, kinds, strict=True):
            groups.setdefault(int(kind), []).append(own)
        return list(groups.values())

    def __getitem__(self, rows: Tensor) -> "Members":
        """Return the members of some rows, which may repeat: a patient drawn twice counts twice."""
        return Members(self.patients[rows], self.kinds[rows], self.weights[rows])


def as_members(owners: "Members | Tensor | int") -> Members:
    """Return members of one kind: for a number of rows each of another patient, else by the patients' numbers."""
    if isinstance(owners, Members):
        return owners
    patients = torch.arange(owners) if isinstance(owners, int) else owners
    return Members(patients, torch.zeros_like(patients))


def members_of(kinds: Tensor, patients: Tensor | None = None) -> Members:
    """Return the members of rows of these kinds and patients, by default all of different ones."""
    return Members(torch.arange(len(kinds)) if patients is None else patients, kinds)


def number_members(*sets: Sequence[tuple[str, str]]) -> list[Members]:
    """Return the members of each set of (patient, modality) names, numbered alike in all of them.

    Numbers follow the sorted names, so they do not depend on the order of the files.
    """
    tables = []
    for place in (0, 1):
        names = sorted({row[place] for rows in sets for row in rows})
        tables.append({name: number for number, name in enumerate(names)})

    def numbers(rows: Sequence[tuple[str, str]], place: int) -> Tensor:
        return torch.tensor([tables[place][row[place]] for row in rows], dtype=torch.int64)

    return [Members(numbers(rows, 0), numbers(rows, 1)) for rows in sets]
