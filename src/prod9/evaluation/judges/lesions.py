"""Find out how many generated volumes hold a lesion, by a segmenter and a threshold on the volume that it finds.

Only the modality that shows lesions best is used; the others show the same patients. On FLAIR the verdict on
reconstructions of held-out patients is right, while networks that use every modality are hardly better than the answer
"yes" for all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.evaluation.judges.segmenter import Segmenter, train_segmenter
from prod9.types import Label, Volume


@dataclass(frozen=True)
class LesionCases:
    """Volumes ``[N 1 H W D]`` in [0, 1], their modality ``[N]`` and lesion masks, bool ``[N 1 H W D]``."""

    volumes: Tensor
    labels: Tensor
    lesions: Tensor

    @property
    def has_lesion(self) -> Tensor:
        """Bool ``[N]``: whether the mask holds any voxel."""
        return self.lesions.flatten(1).any(1)

    def of_modality(self, modality: int) -> "LesionCases":
        """Return the cases of one modality."""
        own = self.labels == modality
        return LesionCases(self.volumes[own], self.labels[own], self.lesions[own])

    def joined(self, other: "LesionCases") -> "LesionCases":
        """Return both, one after the other."""
        return LesionCases(
            torch.cat([self.volumes, other.volumes]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.lesions, other.lesions]),
        )


@dataclass(frozen=True)
class LesionDetector:
    """Decides whether a volume of ``modality`` holds a lesion: whether more than ``threshold`` voxels are lesion."""

    segmenter: Segmenter
    modality: int
    threshold: float

    def has_lesion(self, volumes: Volume) -> Bool[Tensor, " B"]:
        """Return the verdict on each volume; all must be of ``modality``."""
        return found_voxels(self.segmenter, volumes) > self.threshold

    def share(self, volumes: Volume, labels: Label) -> float:
        """Return the share of the volumes of ``modality`` in which a lesion is found; NaN without such volumes."""
        return self.has_lesion(volumes[labels == self.modality]).float().mean().item()

    def accuracy(self, cases: LesionCases) -> float:
        """Return the share of right verdicts on cases of ``modality``; report it beside :meth:`share`."""
        own = cases.of_modality(self.modality)
        return (self.has_lesion(own.volumes) == own.has_lesion).float().mean().item()


def train_lesion_detector(
    training: LesionCases, calibration: LesionCases, *, modality: int, seed: int, steps: int = 150
) -> LesionDetector:
    """Train a segmenter on the cases of ``modality`` and find the threshold that is right most often.

    Args:
        training: real volumes and reconstructions of patients on whom no score is computed.
        calibration: reconstructions of other such patients. The threshold is found on both sets, since a few cases
            alone would leave it to chance.
        modality: number of the modality that shows lesions.
        seed: determines the result.
        steps: training steps.
    """
    own = training.of_modality(modality)
    segmenter = train_segmenter(own.volumes, own.lesions, steps=steps, seed=seed)
    both = own.joined(calibration.of_modality(modality))
    threshold = best_threshold(found_voxels(segmenter, both.volumes), both.has_lesion)
    return LesionDetector(segmenter, modality, threshold)


def found_voxels(segmenter: Segmenter, volumes: Volume) -> Float[Tensor, " B"]:
    """Return the number of lesion voxels that are found in each volume."""
    return segmenter.predict(volumes).flatten(1).sum(1).float()


def best_threshold(scores: Float[Tensor, " N"], truth: Bool[Tensor, " N"]) -> float:
    """Return the threshold for which ``scores > threshold`` agrees with ``truth`` most often; the middle one of equals.

    It lies midway between two scores, or below or above all of them.
    """
    ordered = torch.cat([scores.min()[None] - 1, scores.sort().values, scores.max()[None] + 1])
    candidates = (ordered[1:] + ordered[:-1]) / 2
    right = ((scores > candidates[:, None]) == truth).sum(1)
    best = candidates[right == right.max()]
    return best[len(best) // 2].item()
