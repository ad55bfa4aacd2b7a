import torch

from prod9.evaluation.regions import REGIONS, find_regions, score_regions
from prod9.measures.metrics import psnr


def volume():
    target = torch.zeros(2, 1, 4, 4, 4)
    target[:, :, 1:] = 0.5
    seg = torch.zeros(2, 1, 4, 4, 4, dtype=torch.int64)
    seg[0, :, 2:] = 3
    seg[0, :, 0, 0, 0] = 1  # in the background: no tumour of this scan
    return target, seg


def test_brain_is_tumour_and_healthy():
    target, seg = volume()
    regions = find_regions(target, seg)
    assert tuple(regions) == REGIONS
    assert regions["whole"].all()
    assert torch.equal(regions["brain"], target > 0)
    assert torch.equal(regions["tumour"] | regions["healthy"], regions["brain"])
    assert not (regions["tumour"] & regions["healthy"]).any()
    assert regions["tumour"].sum() == 2 * 16


def test_without_segmentation_all_of_the_brain_is_healthy():
    target, _ = volume()
    regions = find_regions(target, None)
    assert not regions["tumour"].any()
    assert torch.equal(regions["healthy"], regions["brain"])


def test_an_error_counts_where_it_is_and_empty_regions_have_no_score():
    target, seg = volume()
    pred = target.clone()
    pred[:, :, 1] += 0.1  # brain, but no tumour
    scores = score_regions(psnr, pred, target, find_regions(target, seg))
    assert scores["tumour"][0] == 100.0
    assert scores["tumour"][1].isnan()
    assert scores["healthy"][0] < scores["brain"][0] < scores["whole"][0]
