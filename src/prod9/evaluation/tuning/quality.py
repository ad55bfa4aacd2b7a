"""How good a set of generated volumes is beside validation scans, in one number and in its parts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.score_table import Score
from prod9.evaluation.set_scores import score_metrics
from prod9.evaluation.sets.entries import BadFiles, Entry
from prod9.evaluation.sets.pair import Resampling, SetPair
from prod9.evaluation.sets.rows import SetRows, describe_set
from prod9.pipelines.labels import AbstractLabelPipeline, GeneratedVolume
from prod9.pipelines.placement import GridPlacement

COUNTED = ("frechet_principal", "spectrum_distance_db", "radiomic_distance")
"""Distances that count, each over its floor: real patients against other real patients in equal numbers."""
SHOWN = ("kid", "kid_standardised")
"""Distances that are reported alone: the floor of an unbiased estimate is about 0, and nothing can be divided by it."""
DIVERSITY = "ms_ssim_pairs"
FEWEST = 4
"""Validation patients without whom nothing can be compared: two halves of two."""


@dataclass(frozen=True)
class Quality:
    """The verdict on a set.

    Attributes:
        loss: the geometric mean of ``multiples``; 1 is as good as scans. NaN where a part is unknown.
        multiples: of each distance, generated over floor, at least 1; of the diversity, its ratio to that of scans or
            the inverse, whichever is larger.
        diversity: that ratio: below 1, volumes differ less from each other than scans do.
        scores: every figure with its floor and interval.
    """

    loss: float
    multiples: Mapping[str, float]
    diversity: float
    scores: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "loss": self.loss,
            "multiples": dict(self.multiples),
            "diversity": self.diversity,
            "scores": {name: dict(score) for name, score in self.scores.items()},
        }


def judge(pair: SetPair, extractor: str) -> Quality:
    """Compare a generated set with validation scans; see :class:`Quality`. extractor: name of that of the features."""
    found = score_metrics(pair, extractor, (*COUNTED, *SHOWN))
    multiples = {name: _over_floor(found[name]) for name in COUNTED}
    diversity = _diversity_ratio(found[DIVERSITY])
    multiples["diversity"] = max(diversity, 1 / diversity) if diversity > 0 else math.inf
    loss = math.exp(sum(math.log(value) for value in multiples.values()) / len(multiples))
    kept = ("value", "low", "high", "matched", "floor", "num_generated", "num_real", "patients_real")
    scores = {name: {key: score.to_dict()[key] for key in kept} for name, score in found.items()}
    return Quality(loss, multiples, diversity, scores)


def _over_floor(score: Score) -> float:
    floor = score.floor
    if floor is None or not floor.value > 0:
        return math.nan
    return max(1.0, floor.matched / floor.value)


def _diversity_ratio(score: Score) -> float:
    floor = score.floor
    if floor is None or not 1 - floor.value > 0:
        return math.nan
    return (1 - score.value) / (1 - floor.value)


# -- the two sets -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanReader:
    """Reads scans as training placed them."""

    placement: GridPlacement

    def read(self, entry: Entry) -> Tensor:
        """Return float32 ``[1 1 H W D]`` in [0, 1] on the model's grid."""
        placed = self.placement.place({entry.modality: entry.read()})
        return torch.from_numpy(placed.images[entry.modality])[None, None]


@dataclass
class Drawn:
    """Volumes that are drawn while they are described, so that none is kept. seconds: that drawing took so far."""

    pipeline: AbstractLabelPipeline
    count: int
    seed: int
    batch_size: int
    seconds: float = 0.0
    _going: dict[str, Iterator[GeneratedVolume]] = field(default_factory=dict)

    def entries(self) -> list[Entry]:
        """Return ``count`` volumes of each label; volume k of every label counts as those of one patient k."""
        return [
            Entry(f"{k:05d}", f"{k:05d}", name, Path(f"{name}_{k:04d}"))
            for name in self.pipeline.label_names()
            for k in range(self.count)
        ]

    def read(self, entry: Entry) -> Tensor:
        """Return the volume of ``entry``: float32 ``[1 1 H W D]``. Those of a label come in their order."""
        began = perf_counter()
        if entry.modality not in self._going:
            self._going[entry.modality] = self.pipeline.generate(
                entry.modality, num_samples=self.count, seed=self.seed, batch_size=self.batch_size
            )
        volume = next(self._going[entry.modality])
        if volume.index != int(entry.case_id):
            raise ValueError(
                f"entries: expected volume {volume.index}, got {entry.case_id}; keep their order"
            )
        self.seconds += perf_counter() - began
        return torch.from_numpy(volume.data)[None, None]


def describe_drawn(drawn: Drawn, extractor: SliceExtractor, device: torch.device) -> SetRows:
    """Draw the volumes and return what is kept of them."""
    bad = BadFiles(skip=False)
    return describe_set(drawn.entries(), drawn, [extractor], bad, device=device)


def pair_of(generated: SetRows, scans: SetRows, *, seed: int, replicates: int) -> SetPair:
    """Return both sets, with the draws of floors and intervals.

    Args:
        generated: rows of the generated volumes.
        scans: rows of the real ones.
        seed: of the draws.
        replicates: bootstrap samples.
    """
    return SetPair(generated, scans, Resampling(replicates, seed))


def names_of(patients: Sequence[str], shown: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(patients) - shown} more" if len(patients) > shown else ""
    return ", ".join(patients[:shown]) + more
