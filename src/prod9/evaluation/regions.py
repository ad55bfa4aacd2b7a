"""Where a volume is scored: whole, brain, tumour, healthy.

Most of a skull-stripped volume is background, where any model is right, and most of a brain is healthy: a
lesion that was painted over hardly shows in a score of the whole.
"""

from collections.abc import Callable

from jaxtyping import Bool, Integer
from torch import Tensor

from prod9.measures.metrics import foreground
from prod9.types import Volume

REGIONS = ("whole", "brain", "tumour", "healthy")

Region = Bool[Tensor, "B 1 H W D"]
Score = Callable[..., Tensor]
"""A score of the kind of ``metrics.psnr``: (pred, target, mask=…) → one value a sample."""


def find_regions(target: Volume, seg: Integer[Tensor, "B 1 H W D"] | Region | None) -> dict[str, Region]:
    """Return the masks of ``REGIONS`` for ``target`` ``[B 1 H W D]``, whose background is exactly 0.

    seg: canonical labels or a lesion mask, anything but 0 is tumour; None for no tumour anywhere. ``healthy``
    is the brain outside the tumour. A tumour counts where it lies in the brain of the target.
    """
    brain = foreground(target)
    tumour = brain & (seg != 0) if seg is not None else brain & False
    return {"whole": brain | True, "brain": brain, "tumour": tumour, "healthy": brain & ~tumour}


def score_regions(
    score: Score, pred: Volume, target: Volume, regions: dict[str, Region]
) -> dict[str, Tensor]:
    """Return ``score`` of each sample over each region, NaN where the region is empty."""
    return {name: score(pred, target, mask=mask) for name, mask in regions.items()}
