"""Decide which generated volumes are copies of training patients.

For each generated volume, the distance to the nearest training volume is divided by the distance to the nearest
held-out volume. The same ratio is computed for held-out patients, which no model has seen: each is compared with the
training set and with the other held-out patients. A generated volume is suspect if hardly any held-out patient has a
ratio as low. Blurred volumes are near to all others, which does not make them suspect.

The threshold is set so that the share ``false_alarms`` of the volumes of a model that copies nothing is suspect. It is
the rank among the held-out ratios that leaves this share below (a conformal p-value), or, if that is lower, the bound
below which at most this share of a normal distribution of their logarithms lies, with 95% confidence (a one-sided
tolerance bound). The bound is computed over patients, each represented by its lowest volume, because the modalities of
one patient are not independent; few patients make it wide. Distances are cosine distances of embeddings centred on the
training set. Authenticity is that of Alaa et al., ICML 2022: a volume is authentic unless it is nearer to its nearest
training volume than that one is to any other patient.
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
"""Embeddings of N volumes, each under V mirrorings; row 0 is the volume as it is."""

MIN_PATIENTS = 5
"""With fewer held-out patients no threshold can be set."""

_CHUNK = 64
_CONFIDENCE = 0.95
_SMALLEST = 1e-6
_COPY = 0.02
"""A held-out volume with a lower relative distance to a training volume is the same volume."""


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
    """The result of one embedding.

    Attributes:
        name: of the embedding.
        held_out: relative distances of the held-out volumes: training over held-out.
        generated: relative distances of the generated volumes.
        p_values: of the generated volumes, among the held-out ones.
        threshold: lower relative distances are suspect.
        nearest: training volume that each generated one is nearest to.
        authentic: whether each generated volume is authentic; see the module.
        copies_held_out: (held-out volume, training volume) of those that are the same.
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

    Rows have unit length. Pairs in ``excluded``, such as those of one patient, do not count.
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
    """Compare the sets by one embedding.

    Raises ValueError for fewer than ``MIN_PATIENTS`` held-out patients, or too few volumes for ``false_alarms``.

    Args:
        name: of the embedding.
        train: the training set.
        held_out: patients that no model has seen.
        generated: volumes to judge.
        false_alarms: share of honest volumes that this embedding may find suspect.
    """
    needed, patients = required_held_out(false_alarms, 1), len(set(held_out.patients))
    if len(held_out.rows) < needed or patients < MIN_PATIENTS:
        raise ValueError(
            f"expected at least {needed} held-out volumes of {MIN_PATIENTS} or more patients for {false_alarms:g} "
            f"false alarms, got {len(held_out.rows)} of {patients}; hold out more patients"
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
        copies_held_out=[(k, int(own.index[k])) for k in torch.nonzero(honest < _COPY).flatten().tolist()],
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
    """Return, for each training volume of ``index``, the distance to the nearest one of another patient."""
    chosen = Described(rows[index], [train.patients[int(i)] for i in index])
    return find_nearest(chosen.rows[:, :1], rows, excluded=_same_patient(chosen, train)).distance


def _same_patient(one: Described, other: Described) -> Bool[Tensor, "N M"]:
    number = {patient: k for k, patient in enumerate({*one.patients, *other.patients})}
    first, second = (torch.tensor([number[p] for p in d.patients]) for d in (one, other))
    return first[:, None] == second[None]
