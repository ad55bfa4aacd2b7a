"""Scores of a set of generated volumes against real ones: distance of distributions, and diversity."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.training.metrics import frechet_distance
from prod9.types import Label, Volume

Features = Float[Tensor, "N D"]


@dataclass(frozen=True)
class FrechetRatio:
    """``ratio`` = ``distance`` / ``floor``; 1 means as near to held-out volumes as the training set is.

    Both distances use ``num_samples`` volumes against ``num_reference`` held-out ones, since the estimate
    depends on N, in ``dimensions`` features.
    """

    distance: float
    floor: float
    num_samples: int
    num_reference: int
    dimensions: int

    @property
    def ratio(self) -> float:
        """Distance of the generated set over that of the training set."""
        return self.distance / self.floor


def frechet_ratio(
    generated: Features,
    training: Features,
    held_out: Features,
    *,
    generator: torch.Generator,
    generated_labels: Label | None = None,
    training_labels: Label | None = None,
    draws: int = 8,
) -> FrechetRatio:
    """Compare generated with held-out features, by the yardstick of training against held-out ones.

    The floor is a mean over ``draws`` subsets of the training set of the generated set's size, with its
    class counts where labels are given. ValueError where the training set cannot supply them.
    """
    if (generated_labels is None) != (training_labels is None):
        raise ValueError("labels must be given for both sets or for neither, got one; pass the other too")
    if generated_labels is None or training_labels is None:
        generated_labels = torch.zeros(len(generated), dtype=torch.int64)
        training_labels = torch.zeros(len(training), dtype=torch.int64)
    floors = []
    for _ in range(draws):
        rows = _matching_rows(training_labels, generated_labels, generator)
        floors.append(frechet_distance(training[rows], held_out).item())
    return FrechetRatio(
        distance=frechet_distance(generated, held_out).item(),
        floor=sum(floors) / len(floors),
        num_samples=len(generated),
        num_reference=len(held_out),
        dimensions=generated.shape[1],
    )


def _matching_rows(available: Label, wanted: Label, generator: torch.Generator) -> Tensor:
    """Draw rows of ``available`` without replacement, as many of each class as ``wanted`` holds."""
    rows = []
    for label in wanted.unique().tolist():
        candidates = (available == label).nonzero().flatten()
        count = int((wanted == label).sum())
        if count > len(candidates):
            raise ValueError(
                f"the training set must hold at least {count} volumes of class {label}, "
                f"got {len(candidates)}; score fewer generated volumes"
            )
        rows.append(candidates[torch.randperm(len(candidates), generator=generator)[:count]])
    return torch.cat(rows)


def mean_pairwise_distance(volumes: Volume) -> float:
    """Return the root-mean-square intensity difference of two volumes, averaged over all pairs."""
    if len(volumes) < 2:
        raise ValueError(f"pairs need at least 2 volumes, got {len(volumes)}; generate more")
    flat = volumes.flatten(1)
    return torch.pdist(flat).mean().item() / flat.shape[1] ** 0.5


def diversity_ratio(
    generated: Volume, held_out: Volume, *, generated_labels: Label, held_out_labels: Label
) -> float:
    """Return the mean pairwise distance of generated volumes over that of held-out ones, within classes.

    1 is as diverse as reality, 0 one volume over and over. Pairs across classes are left out: their distance
    is that of the modalities. Each class counts once, whatever its number of volumes.
    """
    classes = generated_labels.unique().tolist()
    made = [mean_pairwise_distance(generated[generated_labels == label]) for label in classes]
    real = [mean_pairwise_distance(held_out[held_out_labels == label]) for label in classes]
    return sum(made) / sum(real)
