"""Whether generated volumes are copies of training patients.

For each generated volume the distance to the nearest training volume is divided by that to the nearest held-out
one. Held-out patients, which no model has seen, go through the same: each is compared with the training set and
with the other held-out patients. A generated volume is suspect when next to no held-out patient is, relatively, as
near to the training set. Blurred volumes are near to everything, and are not suspect for that.

The threshold is set for the share ``false_alarms`` of suspects among volumes of a model that copies nothing: the rank
among the held-out values that leaves this share below (a conformal p-value), or, where that is lower, the bound below
which at most this share of a normal distribution of their logarithms lies, with 95% confidence (a one-sided
tolerance bound). The bound is that of patients, each by its lowest volume: the modalities of one patient are no
independent witnesses, and few patients make it wide. Distances are cosine distances of embeddings centred on
the training set. Authenticity is that of Alaa et al., ICML 2022: a volume is authentic unless it is nearer to
its training neighbour than that one is to any other patient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy import stats
from torch import Tensor

Rows = Float[Tensor, "N V D"]
"""Embeddings of N volumes, each under V mirrorings, the first being none."""

MIN_PATIENTS = 5
"""Held-out patients below which no threshold is worth its name."""

_CHUNK = 64
_CONFIDENCE = 0.95
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Described:
    """A set of volumes: embeddings and, for each volume, its patient."""

    rows: Rows
    patients: Sequence[str]


@dataclass(frozen=True)
class Nearest:
    """The nearest reference of each volume: cosine distance, which one, and under which mirroring."""

    distance: Float[Tensor, " N"]
    index: Int64[Tensor, " N"]
    mirror: Int64[Tensor, " N"]


@dataclass(frozen=True)
class Comparison:
    """What one embedding says.

    held_out, generated: relative distances, training over held-out. p_values: of the generated volumes, among the
    held-out ones. threshold: relative distances below it are suspect. authentic: see the module.
    """

    name: str
    held_out: Float[Tensor, " M"]
    generated: Float[Tensor, " N"]
    p_values: Float[Tensor, " N"]
    threshold: float
    nearest: Nearest
    authentic: Bool[Tensor, " N"]
    copies_held_out: Sequence[tuple[int, int]] = ()

    @property
    def suspect(self) -> Bool[Tensor, " N"]:
        """Which generated volumes are suspect by this embedding."""
        return self.generated < self.threshold


def required_held_out(false_alarms: float, embeddings: int) -> int:
    """Return how many held-out volumes are needed for any volume to become suspect."""
    return math.ceil(embeddings / false_alarms - 1e-9) - 1


def find_nearest(queries: Rows, references: Rows, *, excluded: Bool[Tensor, "N M"] | None = None) -> Nearest:
    """Return the nearest of ``references`` (their first rows) to any mirroring of each query.

    Rows have unit length. excluded: pairs that don't count, such as those of one patient.
    """
    parts, targets = [], references[:, 0].T
    for start in range(0, len(queries), _CHUNK):
        chunk = queries[start : start + _CHUNK]
        distances = 1.0 - chunk.flatten(0, 1) @ targets
        best, mirror = distances.unflatten(0, chunk.shape[:2]).min(dim=1)
        if excluded is not None:
            best = best.masked_fill(excluded[start : start + _CHUNK], torch.inf)
        distance, index = best.min(dim=1)
        parts.append((distance.clamp_min(0.0), index, mirror.gather(1, index[:, None])[:, 0]))
    return Nearest(*(torch.cat(column) for column in zip(*parts, strict=True)))


def compare(
    name: str, *, train: Described, held_out: Described, generated: Described, false_alarms: float
) -> Comparison:
    """Return what the embedding ``name`` says of ``generated``.

    false_alarms: the share of honest volumes that this embedding may call suspect. ValueError where there are fewer
    than ``MIN_PATIENTS`` held out, or too few volumes for that share.
    """
    needed, patients = required_held_out(false_alarms, 1), len(set(held_out.patients))
    if len(held_out.rows) < needed or patients < MIN_PATIENTS:
        raise ValueError(
            f"at least {needed} held-out volumes of {MIN_PATIENTS} or more patients are needed for {false_alarms:g} "
            f"false alarms, got {len(held_out.rows)} of {patients}"
        )
    centre = train.rows[:, :1].mean(dim=0)
    train_rows, held_rows, rows = (
        F.normalize(described.rows - centre, dim=2) for described in (train, held_out, generated)
    )
    own = find_nearest(held_rows, train_rows)
    others = find_nearest(held_rows, held_rows, excluded=_same_patient(held_out, held_out))
    honest = _ratio(own, others)
    nearest = find_nearest(rows, train_rows)
    relative = _ratio(nearest, find_nearest(rows, held_rows))
    ranks = (honest[None] <= relative[:, None]).sum(dim=1)
    return Comparison(
        name=name,
        held_out=honest,
        generated=relative,
        p_values=(1.0 + ranks) / (len(honest) + 1.0),
        threshold=_threshold(honest, held_out.patients, false_alarms),
        nearest=nearest,
        authentic=nearest.distance >= _spread(train, train_rows, nearest.index),
        copies_held_out=_copies(honest, own),
    )


def _threshold(honest: Float[Tensor, " M"], patients: Sequence[str], false_alarms: float) -> float:
    allowed = math.floor(false_alarms * (len(honest) + 1) + 1e-9)
    rank = honest.sort().values[allowed - 1].item()
    lowest: dict[str, float] = {}
    for patient, value in zip(patients, honest.clamp_min(_SMALLEST).log().tolist(), strict=True):
        lowest[patient] = min(value, lowest.get(patient, math.inf))
    logs = torch.tensor(list(lowest.values()), dtype=torch.float64)
    root = math.sqrt(len(logs))
    deviations = stats.nct.ppf(_CONFIDENCE, len(logs) - 1, stats.norm.ppf(1 - false_alarms) * root) / root
    return min(rank, math.exp((logs.mean() - deviations * logs.std()).item()))


def _ratio(train: Nearest, held_out: Nearest) -> Float[Tensor, " N"]:
    return train.distance / held_out.distance.clamp_min(_SMALLEST)


def _spread(train: Described, rows: Rows, index: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return for each training volume of ``index`` the distance to the nearest of another patient."""
    chosen = Described(rows[index], [train.patients[int(i)] for i in index])
    return find_nearest(chosen.rows[:, :1], rows, excluded=_same_patient(chosen, train)).distance


def _same_patient(one: Described, other: Described) -> Bool[Tensor, "N M"]:
    number = {patient: k for k, patient in enumerate({*one.patients, *other.patients})}
    first, second = (torch.tensor([number[p] for p in d.patients]) for d in (one, other))
    return first[:, None] == second[None]


_COPY = 0.02
"""A held-out volume that is, relatively, this near to a training volume is that volume."""


def _copies(honest: Tensor, nearest: Nearest) -> list[tuple[int, int]]:
    found = torch.nonzero(honest < _COPY).flatten().tolist()
    return [(k, int(nearest.index[k])) for k in found]
