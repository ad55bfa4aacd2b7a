"""A modality classifier that depends on contrast, to check that generated volumes show what was asked for."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prod9.evaluation.judges.networks import (
    augment_geometry,
    augment_intensity,
    build_seeded,
    coarsen,
    conv_block,
    standardise,
    train_judge,
)
from prod9.types import Label, Volume

WIDTHS = (16, 32, 32)
CELLS = 3


class ModalityClassifier(nn.Module):
    """Four convolutions and a linear layer on means over 3³ cells and on maxima over the volume.

    The cells separate the rim of a brain from its core, where most contrasts differ. Volumes are in [0, 1] and are
    standardised over the brain first.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        strided = [conv_block(i, o, stride=2) for i, o in pairwise((1, *WIDTHS))]
        self.body = nn.Sequential(*strided, conv_block(WIDTHS[-1], WIDTHS[-1]))
        self.head = nn.Linear((CELLS**3 + 1) * WIDTHS[-1], num_classes)

    def features(self, x: Volume) -> Float[Tensor, "B F"]:
        """Return means over cells, then maxima, of the last feature maps."""
        h = self.maps(x)
        return torch.cat([F.adaptive_avg_pool3d(h, CELLS).flatten(1), h.amax((2, 3, 4))], dim=1)

    def maps(self, x: Volume) -> Float[Tensor, "B F h w d"]:
        """Return the last feature maps."""
        return self.body(standardise(coarsen(x)))

    def forward(self, x: Volume) -> Float[Tensor, "B K"]:
        """Return class logits."""
        return self.head(self.features(x))

    @torch.no_grad()
    def probabilities(self, x: Volume, *, batch_size: int = 16) -> Float[Tensor, "B K"]:
        """Return class probabilities."""
        return torch.cat([self(part).softmax(1) for part in x.split(batch_size)])

    def predict(self, x: Volume) -> Int64[Tensor, " B"]:
        """Return the most probable class of each volume."""
        return self.probabilities(x).argmax(1)

    def accuracy(self, x: Volume, labels: Label) -> float:
        """Return the share of volumes whose predicted class is ``labels``."""
        return (self.predict(x) == labels).float().mean().item()


def train_classifier(
    volumes: Volume,
    labels: Label,
    *,
    num_classes: int,
    seed: int,
    steps: int = 400,
    batch_size: int = 8,
    learning_rate: float = 6e-3,
) -> ModalityClassifier:
    """Train a ModalityClassifier on training patients, with real volumes and reconstructions mixed.

    Because of random gamma, gain, offset, mirroring and shifts it can use only contrast and anatomy. Report its
    accuracy on held-out reconstructions beside every score that depends on it.

    Args:
        volumes: in [0, 1].
        labels: their classes.
        num_classes: number of classes.
        seed: determines the result.
        steps: training steps.
        batch_size: volumes per step.
        learning_rate: highest learning rate.
    """
    network = build_seeded(lambda: ModalityClassifier(num_classes=num_classes), seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        index = torch.randint(len(volumes), (batch_size,), generator=generator)
        x = augment_geometry(augment_intensity(volumes[index], generator), generator)
        return F.cross_entropy(network(x), labels[index], label_smoothing=0.05)

    return train_judge(network, loss, steps=steps, learning_rate=learning_rate)
