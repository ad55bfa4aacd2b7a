"""A network that reads a number, such as a volume or an age, from a scan; it learns from real ones."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prod9.evaluation.judges.networks import (
    augment_geometry,
    augment_intensity,
    augment_sharpness,
    build_seeded,
    coarsen,
    conv_block,
    standardise,
    train_judge,
)
from prod9.system.progress import Progress
from prod9.types import Volume

Numbers = Float[Tensor, "N K"]
"""One row per volume, one column per covariate; NaN where it is not known."""
WIDTHS = (16, 32, 32)


class NumberReader(nn.Module):
    """Convolutions, then means over the volume and its maxima, then a linear layer: means count voxels of a kind.

    Volumes are in [0, 1] and are standardised over the brain first. num_outputs: numbers K to read.
    """

    def __init__(self, *, num_outputs: int) -> None:
        super().__init__()
        strided = [
            conv_block(i, o, stride=stride)
            for (i, o), stride in zip(pairwise((1, *WIDTHS)), (2, 2, 1), strict=True)
        ]
        self.body = nn.Sequential(*strided, conv_block(WIDTHS[-1], WIDTHS[-1]))
        self.head = nn.Linear(2 * WIDTHS[-1], num_outputs)

    def forward(self, x: Volume) -> Numbers:
        """Return the numbers of each volume, standardised as in training."""
        h = self.body(standardise(coarsen(x)))
        return self.head(torch.cat([h.mean((2, 3, 4)), h.amax((2, 3, 4))], dim=1))


@dataclass(frozen=True)
class Reader:
    """A trained network in evaluation mode, and the mean and deviation ``[K]`` of what it was trained on."""

    network: NumberReader
    mean: Tensor
    deviation: Tensor

    @torch.no_grad()
    def read(self, volumes: Volume, *, batch_size: int = 16) -> Numbers:
        """Return the numbers that are found in ``volumes`` ``[N 1 H W D]``."""
        found = torch.cat([self.network(part) for part in volumes.split(batch_size)])
        return found * self.deviation + self.mean


def train_reader(
    volumes: Volume,
    numbers: Numbers,
    *,
    steps: int,
    seed: int,
    batch_size: int = 8,
    learning_rate: float = 6e-3,
    progress: Progress | None = None,
) -> Reader:
    """Train on volumes and what is known of them; unknown numbers do not count.

    Because of random gamma, gain, offset and blur it uses contrast and shape only.

    Args:
        volumes: ``[N 1 H W D]`` in [0, 1], of one modality.
        numbers: what is known of each.
        steps: training steps.
        seed: determines the result.
        batch_size: volumes per step.
        learning_rate: highest learning rate.
        progress: called after each step.
    """
    known = ~numbers.isnan()
    mean = numbers.nanmean(0)
    deviation = (numbers - mean).square().nanmean(0).sqrt().clamp_min(1e-6)
    targets = ((numbers - mean) / deviation).nan_to_num(0.0)
    network = build_seeded(lambda: NumberReader(num_outputs=numbers.shape[1]), seed=seed).to(volumes.device)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        index = torch.randint(len(volumes), (batch_size,), generator=generator)
        x = augment_sharpness(augment_intensity(volumes[index], generator), generator)
        missed = (network(augment_geometry(x, generator)) - targets[index]).square() * known[index]
        return missed.sum() / known[index].sum().clamp_min(1)

    trained = train_judge(network, loss, steps=steps, learning_rate=learning_rate, progress=progress)
    return Reader(trained, mean, deviation)
