"""The tumour segmenter and its Dice."""

import pytest
import torch

from prod9.evaluation.judges.segmenter import Segmenter, TumourUNet, dice, train_segmenter
from prod9.evaluation.sets.patients import region_masks

from .conftest import toy_brains


@pytest.fixture(scope="module")
def segmenter(brains):
    volumes, _, lesions = brains
    return train_segmenter(volumes, lesions, steps=80, seed=0)


def test_it_outlines_lesions_of_held_out_brains(segmenter, held_out):
    volumes, _, lesions = held_out
    assert dice(segmenter.predict(volumes), lesions).nanmean() >= 0.6


def test_a_dimmer_scan_changes_little(segmenter, held_out):
    volumes, _, _ = held_out
    assert dice(segmenter.predict(0.8 * volumes), segmenter.predict(volumes)).nanmean() >= 0.9


def test_it_finds_next_to_nothing_where_there_is_nothing(segmenter):
    volumes, _, _ = toy_brains(4, seed=3, lesion_share=0.0)
    assert segmenter.predict(volumes).float().mean() <= 2e-3


def test_the_seed_decides_all(brains):
    volumes, _, lesions = brains
    first, second = (train_segmenter(volumes, lesions, steps=2, seed=5) for _ in range(2))
    torch.manual_seed(1)  # the global state plays no part
    third = train_segmenter(volumes, lesions, steps=2, seed=6)
    assert torch.equal(first.probabilities(volumes[:2]), second.probabilities(volumes[:2]))
    assert not torch.equal(first.probabilities(volumes[:2]), third.probabilities(volumes[:2]))


def test_progress_counts_the_steps(brains):
    volumes, _, lesions = brains
    seen = []
    train_segmenter(volumes, lesions, steps=3, seed=0, progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_it_takes_any_sides():
    network = TumourUNet().eval()
    assert network(torch.rand(1, 1, 11, 16, 13)).shape == (1, 1, 11, 16, 13)


def test_dice_of_known_overlaps():
    truth = torch.zeros(4, 1, 4, 4, 4, dtype=torch.bool)
    truth[:3, :, :2] = True
    found = torch.zeros_like(truth)
    found[0], found[1, :, :2], found[3, :, 0] = True, True, True
    scores = dice(found, truth)
    assert scores[:3].tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert scores[3].isnan()  # nothing to find: no overlap to speak of


def test_several_modalities_and_regions():
    network = TumourUNet(num_modalities=2, num_regions=3).eval()
    x = 0.1 + 0.9 * torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = network(x)
    assert logits.shape == (1, 3, 16, 16, 16)
    # Each modality is standardised by itself: the brightness of one says nothing about the other.
    darker = torch.cat([x[:, :1], 0.5 * x[:, 1:]], dim=1)
    torch.testing.assert_close(network(darker), logits, atol=0.02 * logits.abs().max().item(), rtol=0)
    masks = torch.rand(2, 3, 16, 16, 16) > 0.5
    segmenter = train_segmenter(torch.rand(2, 2, 16, 16, 16), masks, steps=1, seed=0)
    assert segmenter.predict(x).shape == logits.shape


def test_one_region_of_several():
    network = TumourUNet(num_regions=3)
    volumes = torch.rand(2, 1, 12, 12, 12)
    every = Segmenter(network, threshold=0.4).predict(volumes)
    for region in range(3):
        one = Segmenter(network, threshold=0.4, region=region).predict(volumes)
        assert torch.equal(one, every[:, region : region + 1])


def test_masks_of_regions_are_nested():
    seg = torch.tensor([0, 1, 2, 3]).view(1, 1, 4, 1, 1)
    masks = region_masks(seg).flatten(2)[0].tolist()
    assert masks == [[False, True, True, True], [False, True, False, True], [False, False, False, True]]
