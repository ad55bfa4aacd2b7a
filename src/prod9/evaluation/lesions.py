"""How many generated volumes hold a lesion: a small segmenter, and a threshold matched to the cohort."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prod9.evaluation.networks import (
    augment_geometry,
    augment_intensity,
    build_seeded,
    coarsen,
    conv_block,
    standardise,
)
from prod9.types import Label, Volume

NUM_SUSPICIOUS = 16
"""Cells that a verdict rests on."""


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


class LesionSegmenter(nn.Module):
    """Says of each cell of 4³ voxels whether it holds lesion; a coarse answer is enough to find one.

    It is told the modality: lesions are dark in one, bright in another. It sees the mirrored volume beside
    the volume, since lesions break the symmetry of a brain.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cells = nn.Sequential(
            conv_block(2 + num_classes, 16, stride=2), conv_block(16, 32, stride=2), conv_block(32, 32)
        )
        self.context = nn.Sequential(conv_block(32, 32, stride=2), conv_block(32, 32))
        self.head = nn.Sequential(conv_block(64, 32), nn.Conv3d(32, 1, 1))

    def forward(self, x: Volume, labels: Label) -> Float[Tensor, "B 1 h w d"]:
        """Return lesion logits of each cell of the (coarsened) volume."""
        x = standardise(coarsen(x))
        planes = F.one_hot(labels, self.num_classes).to(x.dtype)[:, :, None, None, None]
        cells = self.cells(torch.cat([x, x.flip(2), planes.expand(-1, -1, *x.shape[2:])], dim=1))
        context = F.interpolate(self.context(cells), size=cells.shape[2:])
        return self.head(torch.cat([cells, context], dim=1))


@dataclass(frozen=True)
class LesionDetector:
    """Says of a volume whether it holds a lesion: whether its score is positive.

    thresholds: ``[K]``, the logit that separates lesions from none in each modality.
    """

    segmenter: LesionSegmenter
    thresholds: Tensor

    def scores(self, volumes: Volume, labels: Label) -> Float[Tensor, " B"]:
        """Return the mean logit of the cells that look most like lesion, above the modality's threshold."""
        return _scores(self.segmenter, volumes, labels) - self.thresholds[labels]

    def has_lesion(self, volumes: Volume, labels: Label) -> Bool[Tensor, " B"]:
        """Return the verdict on each volume."""
        return self.scores(volumes, labels) > 0

    def share(self, volumes: Volume, labels: Label) -> float:
        """Return the share of volumes found to hold a lesion."""
        return self.has_lesion(volumes, labels).float().mean().item()

    def accuracy(self, cases: LesionCases) -> float:
        """Return the share of right verdicts, to be reported beside ``share``."""
        return (self.has_lesion(cases.volumes, cases.labels) == cases.has_lesion).float().mean().item()


def train_lesion_detector(
    training: LesionCases,
    calibration: LesionCases,
    *,
    num_classes: int,
    seed: int,
    steps: int = 300,
    batch_size: int = 8,
    learning_rate: float = 4e-3,
) -> LesionDetector:
    """Train a segmenter on ``training`` and match its verdicts on ``calibration`` to the true share there.

    Both from patients that no score is computed on; train on real volumes and reconstructions mixed. The
    thresholds of modalities relative to each other come from ``training``, which holds enough of each, and
    one shift of all from ``calibration``. Deterministic in ``seed``.
    """
    segmenter = build_seeded(lambda: LesionSegmenter(num_classes=num_classes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(training.volumes), (batch_size,), generator=generator)
        x = augment_intensity(training.volumes[index], generator)
        # No shift: the mirrored volume lies on the volume only while the midline is central.
        both = augment_geometry(
            torch.cat([x, training.lesions[index].to(x.dtype)], dim=1), generator, shift=0
        )
        logits = segmenter(both[:, :1], training.labels[index])
        loss = _cell_loss(logits, both[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    segmenter.eval().requires_grad_(False)
    relative = LesionDetector(segmenter, _modality_thresholds(segmenter, training, num_classes))
    scores = relative.scores(calibration.volumes, calibration.labels)
    shift = matching_threshold(scores, int(calibration.has_lesion.sum()))
    return LesionDetector(segmenter, relative.thresholds + shift)


def _modality_thresholds(segmenter: LesionSegmenter, cases: LesionCases, num_classes: int) -> Tensor:
    scores = _scores(segmenter, cases.volumes, cases.labels)
    of_label = [cases.labels == label for label in range(num_classes)]
    return torch.tensor(
        [matching_threshold(scores[own], int(cases.has_lesion[own].sum())) for own in of_label]
    )


def matching_threshold(scores: Float[Tensor, " N"], positives: int) -> float:
    """Return a threshold that exactly ``positives`` of the scores exceed, ties aside; 0 for no scores."""
    if not len(scores):
        return 0.0
    ordered = scores.sort(descending=True).values
    margin = torch.cat([ordered[:1] + 1.0, ordered, ordered[-1:] - 1.0])  # beyond all, none or every one
    return margin[positives : positives + 2].mean().item()


def _cell_loss(logits: Tensor, lesions: Tensor) -> Tensor:
    """Cross-entropy of cells, and of whole volumes by their most suspicious cells."""
    target = F.adaptive_max_pool3d(lesions, logits.shape[2:])
    # Few cells hold lesion: without the weight, "none anywhere" is learnt first and for long.
    cells = F.binary_cross_entropy_with_logits(logits, target, pos_weight=logits.new_tensor(2.0))
    volumes = F.binary_cross_entropy_with_logits(_most_suspicious(logits), target.flatten(1).amax(1))
    return cells + 0.2 * volumes


def _most_suspicious(logits: Tensor) -> Tensor:
    return logits.flatten(1).topk(NUM_SUSPICIOUS, dim=1).values.mean(1)


@torch.no_grad()
def _scores(segmenter: LesionSegmenter, volumes: Volume, labels: Label) -> Tensor:
    parts = zip(volumes.split(8), labels.split(8), strict=True)
    return torch.cat([_most_suspicious(segmenter(x, label)) for x, label in parts])
