"""How well generated volumes follow the segmentation that steered them."""

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


def region_contrasts(volumes: Volume, seg: Tensor) -> tuple[Float[Tensor, " R"], Bool[Tensor, "B C"]]:
    """Return how much brighter each segmented class is than its mirror image, and which there are.

    volumes: in [0, 1], RAS, the head centred. seg: integer ``[B H W D]``. A brain is symmetric and a lesion is
    not, so what is left of the contrast is the lesion's own, wherever it lies. One number for each class from 1
    that a sample holds, samples first; a class that is segmented on both sides throughout has none.
    """
    image, classes = volumes[:, 0], range(1, int(seg.max()) + 1)
    if not classes:
        return volumes.new_zeros(0), torch.zeros(len(volumes), 0, dtype=torch.bool)
    healthy_mirror = seg.flip(1) == 0
    compared = [(seg == label) & healthy_mirror for label in classes]
    present = torch.stack([where.flatten(1).any(1) for where in compared], dim=1)
    contrasts = torch.stack([_mean(image - image.flip(1), where) for where in compared], dim=1)
    return contrasts[present], present


def contrast_slope(generated: Volume, real: Volume, seg: Tensor) -> float:
    """Return the slope of the contrasts of generated volumes on those of real ones under the same ``seg``.

    1: classes stand out as in reality, 0: the segmentation left no trace. NaN without any class.
    """
    made, there = region_contrasts(generated, seg)[0], region_contrasts(real, seg)[0]
    return ((made * there).sum() / there.square().sum()).item() if len(there) else float("nan")


def foreground_dice(volumes: Volume, seg: Tensor) -> float:
    """Return the mean Dice overlap of the foreground of ``volumes`` (above Otsu's threshold) with ``seg > 0``.

    volumes: in [0, 1]. seg: integer ``[B H W D]``. For data whose segmentation is the foreground itself.
    """
    found = [foreground_of_image(_bytes(volume[0])) for volume in volumes]
    wanted = (seg > 0).cpu().numpy()
    scores = [
        2.0 * (one & other).sum() / max(1, one.sum() + other.sum())
        for one, other in zip(found, wanted, strict=True)
    ]
    return float(np.mean(scores))


def _bytes(image: Tensor) -> np.ndarray:
    return (image.float().clamp(0.0, 1.0) * 255).round().to(torch.uint8).cpu().numpy()


def _mean(volumes: Tensor, where: Tensor) -> Tensor:
    weight = where.to(volumes.dtype)
    return (volumes * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1.0)


@dataclass(frozen=True)
class ControlScores:
    """Mean Dice of the whole tumour between the given segmentation and what a segmenter finds.

    controlled, base: in volumes generated with and without control. reconstructions: in what stage 1 makes of
    the real volumes, the most that can be reached. real: in the real volumes themselves. cases: the Dice of each
    case whose segmentation is not empty, by the same names.
    """

    controlled: float
    base: float
    reconstructions: float
    real: float
    cases: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return the means and the share."""
        names = ("controlled", "base", "reconstructions", "real", "share")
        return {name: getattr(self, name) for name in names}

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
    """Compare ``given`` with what a segmenter of this modality finds in each set; one row a segmentation.

    Rows whose segmentation is empty are left out: Dice says nothing of them.
    """
    rows = given.flatten(1).any(1)
    sets = {"controlled": controlled, "base": base, "reconstructions": reconstructions, "real": real}
    cases = {name: dice(segmenter.predict(volumes[rows]), given[rows]) for name, volumes in sets.items()}
    return ControlScores(**{name: values.mean().item() for name, values in cases.items()}, cases=cases)
