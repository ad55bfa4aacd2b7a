"""Regions in which a volume is scored: whole, brain, tumour, healthy.

Most of a skull-stripped volume is background, where every model is right, and most of a brain is healthy: a lesion that
was removed hardly changes the score of the whole volume.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from prod9.data.intensity import find_background
from prod9.measures.metrics import foreground
from prod9.types import Volume

REGIONS = ("whole", "brain", "tumour", "healthy")

Region = Bool[Tensor, "B 1 H W D"]


def brain_of(volume: Float[Tensor, "*axes H W D"]) -> Bool[Tensor, "*axes H W D"]:
    """Return the brain of one volume as its file has it: all but its background, whatever value that has.

    A scan that was z-scored with its background has one far below 0 (:func:`prod9.data.intensity.find_background`).
    """
    raw = volume.reshape(volume.shape[-3:]).cpu().numpy()
    inside = torch.from_numpy(~find_background(raw).covers(raw))
    return inside.reshape(volume.shape).to(volume.device)


def find_regions(target: Volume, seg: Integer[Tensor, "B 1 H W D"] | Region | None) -> dict[str, Region]:
    """Return the masks of ``REGIONS`` for ``target`` ``[B 1 H W D]``, whose background is exactly 0.

    ``seg`` holds canonical labels or a lesion mask: every value but 0 is tumour, and None means that there is none. A
    tumour counts where it lies in the brain of the target; ``healthy`` is the brain outside of it.
    """
    brain = foreground(target)
    tumour = brain & (seg != 0) if seg is not None else brain & False
    return {"whole": brain | True, "brain": brain, "tumour": tumour, "healthy": brain & ~tumour}
