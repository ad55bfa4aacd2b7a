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
    """A small U-Net at half resolution, told the modality: lesions are dark in one, bright in another."""

    def __init__(self, *, num_classes: int, width: int = 12) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = conv_block(2 + num_classes, width, stride=2)
        self.down = nn.Sequential(conv_block(width, 2 * width, stride=2), conv_block(2 * width, 2 * width))
        self.bottom = nn.Sequential(
            conv_block(2 * width, 3 * width, stride=2), conv_block(3 * width, 2 * width)
        )
        self.up = conv_block(4 * width, width)
        self.head = nn.Sequential(conv_block(2 * width, width), nn.Conv3d(width, 1, 1))

    def forward(self, x: Volume, labels: Label) -> Float[Tensor, "B 1 h w d"]:
        """Return lesion logits on the grid of the stem, half that of the (coarsened) volume."""
        x = standardise(coarsen(x))
        # The mirrored volume beside it: lesions break the symmetry of a brain.
        planes = F.one_hot(labels, self.num_classes).to(x.dtype)[:, :, None, None, None]
        stem = self.stem(torch.cat([x, x.flip(2), planes.expand(-1, -1, *x.shape[2:])], dim=1))
        down = self.down(stem)
        h = self.up(torch.cat([down, _resize(self.bottom(down), down)], dim=1))
        return self.head(torch.cat([stem, _resize(h, stem)], dim=1))


@dataclass(frozen=True)
class LesionDetector:
    """Says of a volume whether it holds a lesion: predicted lesion volume above ``threshold``."""

    segmenter: LesionSegmenter
    threshold: float

    def scores(self, volumes: Volume, labels: Label) -> Float[Tensor, " B"]:
        """Return the expected share of lesion voxels, of positions that look more like lesion than not."""
        return _scores(self.segmenter, volumes, labels)

    def has_lesion(self, volumes: Volume, labels: Label) -> Bool[Tensor, " B"]:
        """Return the verdict on each volume."""
        return self.scores(volumes, labels) > self.threshold

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

    Both from patients that no score is computed on; train on real volumes and reconstructions mixed.
    Deterministic in ``seed``.
    """
    segmenter = build_seeded(lambda: LesionSegmenter(num_classes=num_classes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(training.volumes), (batch_size,), generator=generator)
        x = augment_intensity(training.volumes[index], generator)
        both = augment_geometry(torch.cat([x, training.lesions[index].to(x.dtype)], dim=1), generator)
        loss = _segmentation_loss(segmenter(both[:, :1], training.labels[index]), both[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    segmenter.eval().requires_grad_(False)
    scores = _scores(segmenter, calibration.volumes, calibration.labels)
    return LesionDetector(segmenter, matching_threshold(scores, int(calibration.has_lesion.sum())))


def matching_threshold(scores: Float[Tensor, " N"], positives: int) -> float:
    """Return a threshold that exactly ``positives`` of the scores exceed, ties aside."""
    ordered = scores.sort(descending=True).values
    if positives == 0:
        return ordered[0].item()
    if positives == len(ordered):
        return -float("inf")
    return ordered[positives - 1 : positives + 1].mean().item()


def _segmentation_loss(logits: Tensor, lesions: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice over the batch, lesions reduced to the grid of the logits by maximum."""
    target = F.adaptive_max_pool3d(lesions, logits.shape[2:])
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice


@torch.no_grad()
def _scores(segmenter: LesionSegmenter, volumes: Volume, labels: Label) -> Tensor:
    rows = []
    for x, label in zip(volumes.split(8), labels.split(8), strict=True):
        p = segmenter(x, label).sigmoid().flatten(1)
        rows.append((p * (p > 0.5)).mean(1) + 1e-3 * p.amax(1))
    return torch.cat(rows)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)
