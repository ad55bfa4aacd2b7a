import pytest
import torch

from prod9.evaluation.lesions import LesionCases, LesionDetector, matching_threshold, train_lesion_detector

from .conftest import toy_brains


@pytest.fixture(scope="module")
def detector(brains):
    training, calibration = LesionCases(*brains), LesionCases(*toy_brains(8, seed=5))
    return train_lesion_detector(training, calibration, num_classes=2, seed=0, steps=60, batch_size=4)


def test_it_finds_lesions_of_held_out_brains(detector, held_out):
    cases = LesionCases(*held_out)
    assert detector.accuracy(cases) >= 0.85
    found, true = detector.share(cases.volumes, cases.labels), cases.has_lesion.float().mean().item()
    assert abs(found - true) <= 0.15


def test_it_finds_none_where_there_is_none(detector):
    volumes, labels, _ = toy_brains(6, seed=9, lesion_share=0.0)
    assert detector.share(volumes, labels) <= 0.2


def test_the_threshold_matches_the_share():
    scores = torch.tensor([0.1, 0.9, 0.4, 0.3])
    for positives in range(5):
        assert (scores > matching_threshold(scores, positives)).sum() == positives
    assert matching_threshold(scores[:0], 0) == 0.0


def test_each_modality_has_a_threshold(detector, held_out):
    volumes, labels, _ = held_out
    assert detector.thresholds.shape == (2,)
    scores = detector.scores(volumes, labels)
    lifted = LesionDetector(detector.segmenter, detector.thresholds + torch.tensor([0.0, 1e3]))
    assert torch.equal(lifted.has_lesion(volumes, labels), (scores > 0) & (labels == 0))


def test_cases_know_who_has_a_lesion(held_out):
    cases = LesionCases(*held_out)
    assert torch.equal(cases.has_lesion, torch.stack([m.any() for m in cases.lesions]))
