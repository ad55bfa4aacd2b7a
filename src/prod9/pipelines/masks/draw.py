"""From nothing to a lesion mask within a brain: tokens of a label map, sampled and decoded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage as ndi
import torch

from prod9.data.label_covariates import DIAMETER, measure, ml_of
from prod9.data.lesions import Lesion
from prod9.errors import ConfigError, DataError
from prod9.generator.condition import MaskGiTCondition
from prod9.label_maps import classes_of, join, labels_in
from prod9.modalities import MOST_OF_GLIOMA
from prod9.pipelines.labels import derived_seed
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.masks.wishes import Wish, draw_values, gap_of
from prod9.system.progress import Share, within

Refuse = Callable[[Lesion], str | None]
"""Returns why a mask is not to be kept; None for one that is."""
MOST_TRIES, FEW_TRIES = 20, 6
"""Draws of a mask until one can be kept, and until the nearest to what was asked is kept."""
_WISH_STREAM = 2
"""Sets what a mask is asked for apart from the tokens that are drawn with the same seed."""


@dataclass(frozen=True, eq=False)
class DrawnMask:
    """One mask.

    Attributes:
        lesion: labels within the outline of the brain that was drawn with them, in the box of that brain.
        index: its number.
        seed: that of the run plus the index.
        asked: size and place that it was drawn for, by covariate; empty for a model without any.
        cut: share of the drawn lesion that lay outside of the brain and was removed.
        refused: why earlier tries were drawn again.
    """

    lesion: Lesion
    index: int
    seed: int
    asked: dict[str, float]
    cut: float
    refused: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """The labels that a patient of BraTS 2023 may have; a resection cavity is tissue there."""
        return np.where(self.lesion.labels > MOST_OF_GLIOMA, 0, self.lesion.labels)

    def describe(self) -> dict[str, Any]:
        """Return it as plain values, for a manifest."""
        asked = {name: round(value, 4) for name, value in self.asked.items() if name != DIAMETER}
        if DIAMETER in self.asked:
            asked = {"volume_ml": round(ml_of(self.asked[DIAMETER]), 3), **asked}
        return {
            "volume_ml": round(self.lesion.ml, 3),
            "asked": asked,
            "cut": round(self.cut, 4),
            **({"drawn_again": list(self.refused)} if self.refused else {}),
        }


class MaskPipeline(MaskGiTPipeline):
    """Lesion masks from a transformer that was trained on label maps; arguments are those of MaskGiTPipeline."""

    shows_labels = True

    def draw(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        wish: Wish | None = None,
        refuse: Refuse | None = None,
        report: Share | None = None,
    ) -> Iterator[DrawnMask]:
        """Yield the masks numbered ``indices``, each from random numbers of its own: mask k depends on seed + k alone.

        A mask without a lesion, and one that ``refuse`` does not want, is drawn again, up to 20 times. So is one that
        is far from the size and place that it was drawn for, up to 6 times, of which the nearest is kept.

        Args:
            indices: numbers of the masks, from 0.
            seed: of mask 0.
            wish: size and side of all lesions; None for those of training.
            refuse: decides which masks are drawn again.
            report: called with the number of masks done, fractions included.

        Raises:
            ConfigError: for a wish that the model cannot fulfil.
            DataError: for a mask of which every try is empty or refused.
        """
        asked = wish or Wish()
        asked.check([] if self.coder is None else self.coder.names, self._bounds)
        return (
            self._draw(index, seed + index, asked, refuse, within(report, place, 1))
            for place, index in enumerate(indices)
        )

    @property
    def is_stripped(self) -> bool:
        """Never: what lies outside of a drawn brain is a class of its own."""
        return False

    @property
    def _bounds(self) -> dict[str, tuple[float, float]]:
        covariates = None if self.config is None else self.config.covariates
        return {} if covariates is None else dict(covariates.numbers)

    def _draw(self, index: int, seed: int, wish: Wish, refuse: Refuse | None, report: Share) -> DrawnMask:
        reasons: list[str] = []
        asked = self._asked(seed, wish)
        best: tuple[float, Lesion, float] | None = None
        for attempt in range(MOST_TRIES):
            tokens = self.sample_tokens(
                self._condition(asked), seeds=[derived_seed(seed, 0, attempt)], report=report
            )
            lesion, cut = placed(self.decode_tokens(tokens), self.affine)
            reason = "no lesion" if not lesion.labels.any() else None if refuse is None else refuse(lesion)
            if reason is not None:
                reasons.append(reason)
                continue
            gap = gap_of(measure(join(lesion.labels, lesion.brain), lesion.spacing), asked)
            if best is None or gap < best[0]:
                best = gap, lesion, cut
            if best[0] <= 1 or attempt + 1 >= FEW_TRIES:
                break
        if best is None:
            raise DataError(
                f"mask {index}: expected one that can be kept in {MOST_TRIES} tries, got none ({reasons[-1]}); train "
                "the model longer, or ask for another volume."
            )
        report(1.0)
        return DrawnMask(best[1], index, seed, asked, best[2], tuple(reasons))

    def _asked(self, seed: int, wish: Wish) -> dict[str, float]:
        if self.coder is None:
            return {}
        data = None if self.config is None else self.config.data
        return draw_values(
            self.lesions,
            wish,
            self._bounds,
            np.random.default_rng(derived_seed(seed, _WISH_STREAM)),
            turn=seed,
            mirrors=data is not None and data.store_flips,
        )

    def _condition(self, asked: dict[str, float]) -> MaskGiTCondition:
        label = torch.tensor([min(self.label_map.values())])
        if self.coder is None:
            return MaskGiTCondition(label)
        texts = {name: f"{value:.6g}" for name, value in asked.items()}
        return MaskGiTCondition(
            label, covariates=self.coder.encode(texts, source="mask", error=ConfigError)[None]
        )


def placed(volume: np.ndarray, affine: np.ndarray) -> tuple[Lesion, float]:
    """Return the lesion of a decoded label map in the box of its brain, and the share of it that lay outside.

    The brain is the largest connected part of what is not outside, with its holes closed.

    Args:
        volume: coded label map, float32 ``[H W D]``.
        affine: 4×4 of its voxels.
    """
    classes = classes_of(volume)
    parts, count = ndi.label(classes > 0)
    labels = labels_in(classes)
    if count == 0:
        return Lesion(labels, np.ones(labels.shape, dtype=bool), affine), 0.0
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    brain = np.asarray(ndi.binary_fill_holes(parts == largest))
    kept = np.where(brain, labels, 0).astype(np.uint8)
    cut = 1 - float((kept > 0).sum() / max(1, (labels > 0).sum()))
    return Lesion(kept, brain, affine).cropped(), cut
