"""Score how well generated volumes follow the segmentation that steered them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.data.foreground import foreground_of_image
from prod9.evaluation.judges.segmenter import Segmenter, dice
from prod9.types import Volume

Lesions = Bool[Tensor, "B 1 H W D"]
_SETS = ("controlled", "base", "reconstructions", "real")


def region_contrasts(volumes: Volume, seg: Tensor) -> tuple[Float[Tensor, " R"], Bool[Tensor, "B C"]]:
    """Return how much brighter each segmented class is than its mirror image, and which classes each sample holds.

    A brain is nearly symmetric and a lesion is not, so the difference is the contrast of the lesion, wherever it lies.
    The first result has one number for each class from 1 that a sample holds, ordered by sample; a class whose mirror
    image is segmented everywhere has none.

    Args:
        volumes: in [0, 1], RAS, with the head in the centre.
        seg: integers ``[B H W D]``.
    """
    image, classes = volumes[:, 0], range(1, int(seg.max()) + 1)
    if not classes:
        return volumes.new_zeros(0), torch.zeros(len(volumes), 0, dtype=torch.bool)
    healthy_mirror = seg.flip(1) == 0
    compared = [(seg == label) & healthy_mirror for label in classes]
    present = torch.stack([where.flatten(1).any(1) for where in compared], dim=1)
    difference, contrasts = image - image.flip(1), []
    for where in compared:
        weight = where.to(difference.dtype)
        total = (difference * weight).flatten(1).sum(1)
        contrasts.append(total / weight.flatten(1).sum(1).clamp_min(1.0))
    return torch.stack(contrasts, dim=1)[present], present


def contrast_slope(generated: Volume, real: Volume, seg: Tensor) -> float:
    """Return the slope of the contrasts of generated volumes on those of real ones under the same ``seg``.

    1 means that classes stand out as in reality, 0 that the segmentation had no effect. NaN without any class.
    """
    made, there = region_contrasts(generated, seg)[0], region_contrasts(real, seg)[0]
    return ((made * there).sum() / there.square().sum()).item() if len(there) else float("nan")


def foreground_dice(volumes: Volume, seg: Tensor) -> float:
    """Return the mean Dice overlap of the foreground of ``volumes`` (above Otsu's threshold) with ``seg > 0``.

    It suits data whose segmentation is the foreground. Volumes are in [0, 1], ``seg`` holds integers ``[B H W D]``.
    """
    images = (volumes[:, 0].float().clamp(0.0, 1.0) * 255).round().to(torch.uint8).cpu().numpy()
    found = [foreground_of_image(image) for image in images]
    wanted = (seg > 0).cpu().numpy()
    scores = [
        2.0 * (one & other).sum() / max(1, one.sum() + other.sum())
        for one, other in zip(found, wanted, strict=True)
    ]
    return float(np.mean(scores))


@dataclass(frozen=True)
class ControlScores:
    """Mean Dice of the whole tumour between the given segmentation and what a segmenter finds.

    Attributes:
        controlled: in volumes generated with control.
        base: in volumes generated without control.
        reconstructions: in stage 1's reconstructions of the real volumes, the highest Dice that can be reached.
        real: in the real volumes.
        cases: the Dice of each case whose segmentation is not empty, by the same names.
    """

    controlled: float
    base: float
    reconstructions: float
    real: float
    cases: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return the means and the share."""
        return {name: getattr(self, name) for name in (*_SETS, "share")}

    @property
    def share(self) -> float:
        """Controlled Dice over that on reconstructions."""
        return self.controlled / max(self.reconstructions, 1e-6)


def score_control(
    segmenter: Segmenter,
    given: Lesions,
    *,
    controlled: Volume,
    base: Volume,
    reconstructions: Volume,
    real: Volume,
) -> ControlScores:
    """Compare ``given`` with what a segmenter of this modality finds in each set.

    All sets have one row per segmentation. Rows whose segmentation is empty are left out: their Dice is undefined.

    Args:
        segmenter: trained on real volumes.
        given: segmentations.
        controlled: volumes generated with control.
        base: volumes generated without control.
        reconstructions: of the real volumes.
        real: the real volumes.
    """
    rows = given.flatten(1).any(1)
    sets = zip(_SETS, (controlled, base, reconstructions, real), strict=True)
    cases = {name: dice(segmenter.predict(volumes[rows]), given[rows]) for name, volumes in sets}
    return ControlScores(**{name: values.mean().item() for name, values in cases.items()}, cases=cases)
