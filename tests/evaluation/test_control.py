"""Whether volumes follow a segmentation: contrasts of classes, and Dice of what a segmenter finds."""

import math

import pytest
import torch

from prod9.evaluation.control import contrast_slope, region_contrasts, score_control


def make_volumes(contrast, batch=2):
    """Brains of 0.4 with two classes that stand out by ``contrast`` and minus half of it."""
    volumes = torch.zeros(batch, 1, 8, 8, 8)
    volumes[:, :, 1:7, 1:7, 1:7] = 0.4
    seg = torch.zeros(batch, 8, 8, 8, dtype=torch.uint8)
    seg[:, 2, 2:4, 2:4], seg[0, 5, 5, 5] = 1, 2
    volumes[:, 0][seg == 1] += contrast
    volumes[:, 0][seg == 2] -= contrast / 2
    return volumes, seg


def test_contrasts_are_against_the_mirror_image():
    volumes, seg = make_volumes(0.2)
    volumes[:, :, :, 1:3] += 0.3  # brighter on both sides: anatomy, not lesion
    contrasts, present = region_contrasts(volumes, seg)
    assert contrasts.tolist() == pytest.approx([0.2, -0.1, 0.2], abs=1e-6)
    assert present.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(("made", "slope"), [(0.2, 1.0), (0.1, 0.5), (0.0, 0.0), (-0.2, -1.0)])
def test_the_slope_is_1_as_in_reality_and_0_without_trace(made, slope):
    real, seg = make_volumes(0.2)
    assert contrast_slope(make_volumes(made)[0], real, seg) == pytest.approx(slope, abs=1e-5)


def test_nothing_segmented_has_no_slope():
    volumes, seg = make_volumes(0.2)
    assert math.isnan(contrast_slope(volumes, volumes, torch.zeros_like(seg)))


class Bright:
    """Finds what is brighter than the brain."""

    def predict(self, volumes):
        return volumes > 0.5


def test_scores_compare_each_set_with_what_was_given():
    real, seg = make_volumes(0.3, batch=3)
    given = (seg == 1)[:, None]
    given[2] = False  # an empty one is left out
    dark, _ = make_volumes(0.0, batch=3)
    scores = score_control(Bright(), given, controlled=real, base=dark, reconstructions=real, real=real)
    assert (scores.controlled, scores.base, scores.reconstructions) == (1.0, 0.0, 1.0)
    assert scores.share == 1.0
