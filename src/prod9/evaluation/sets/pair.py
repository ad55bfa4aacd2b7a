"""Two sets that are compared: their patients, and the scores, intervals and floors over both."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from prod9.evaluation.score_table import Score
from prod9.evaluation.sets.intervals import (
    Floor,
    IndexedScore,
    Interval,
    mean_interval,
    real_floor,
    score_interval,
)
from prod9.evaluation.sets.members import Members, number_members
from prod9.evaluation.sets.rows import SetRows

ALL = "all"
ANYTHING = (-math.inf, math.inf)


@dataclass(frozen=True)
class Resampling:
    """How intervals and floors are drawn.

    Attributes:
        replicates: bootstrap samples, 0 for no intervals.
        seed: of all draws.
    """

    replicates: int = 100
    seed: int = 0


@dataclass(frozen=True)
class SetPair:
    """A generated set and the real one that it is compared with, of one modality or of all."""

    generated: SetRows
    real: SetRows
    resampling: Resampling = field(default_factory=Resampling)
    modality: str = ALL

    def of(self, modality: str) -> "SetPair":
        """Return the volumes of one modality of both sets."""
        return SetPair(self.generated.of(modality), self.real.of(modality), self.resampling, modality)

    @cached_property
    def members(self) -> tuple[Members, Members]:
        """Patients and modalities of both sets, under common numbers."""
        made, there = number_members(
            *([(e.patient_id, e.modality) for e in rows.entries] for rows in (self.generated, self.real))
        )
        return made, there

    @property
    def fewest_patients(self) -> int:
        """Patients of the set that has fewer."""
        return min(side.num_patients for side in self.members)

    def score(self, *notes: str | None, **about: Any) -> Score:
        """Return a score over both sets with those ``notes`` that are not None; ``about`` depends on the metric."""
        about.setdefault("modality", self.modality)
        return Score(
            note=joined(notes),
            num_generated=len(self.generated),
            num_real=len(self.real),
            patients_generated=self.generated.num_patients,
            patients_real=self.real.num_patients,
            **about,
        )

    def mean_interval(
        self, values: Tensor, patients: Tensor, *, bounds: Interval = ANYTHING
    ) -> Interval | None:
        """Return the interval of a mean over patients; see :func:`~prod9.evaluation.sets.intervals.mean_interval`."""
        return mean_interval(
            values,
            replicates=self.resampling.replicates,
            seed=self.resampling.seed,
            patients=patients,
            bounds=bounds,
        )

    def score_interval(self, score: IndexedScore, *, least: float) -> Interval | None:
        """Return the interval of a score of both sets, which is ``least`` or more."""
        return score_interval(
            score,
            *self.members,
            replicates=self.resampling.replicates,
            seed=self.resampling.seed,
            least=least,
        )

    def floor(self, score: IndexedScore, between_real: IndexedScore, *, fewest: int) -> Floor | None:
        """Return the floor of a score that needs ``fewest`` volumes on each side."""
        return real_floor(score, between_real, *self.members, fewest=fewest, seed=self.resampling.seed)

    def why_no_interval(self, interval: Interval | None) -> str | None:
        """Return why there is no interval; None where there is one, or where none was wanted."""
        if interval is not None or not self.resampling.replicates:
            return None
        few = self.fewest_patients < 2
        return f"no interval: {'it needs 2 patients per set' if few else 'too few patients to draw from'}"


def joined(parts: Iterable[str | None]) -> str | None:
    """Return a note made of those ``parts`` that there are; None without any."""
    return "; ".join(part for part in parts if part) or None
