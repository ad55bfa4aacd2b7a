import pytest
import torch

from prod9.evaluation.judges.lesions import LesionCases, best_threshold, found_voxels, train_lesion_detector

from .conftest import toy_brains


@pytest.fixture(scope="module")
def detector(brains):
    training, calibration = LesionCases(*brains), LesionCases(*toy_brains(8, seed=5))
    return train_lesion_detector(training, calibration, modality=1, seed=0, steps=80)


def test_it_finds_lesions_of_held_out_brains(detector, held_out):
    cases = LesionCases(*held_out)
    assert detector.accuracy(cases) >= 0.85
    own = cases.of_modality(1)
    found, true = detector.share(cases.volumes, cases.labels), own.has_lesion.float().mean().item()
    assert abs(found - true) <= 0.15


def test_it_finds_none_where_there_is_none(detector):
    volumes, labels, _ = toy_brains(6, seed=9, lesion_share=0.0)
    assert detector.share(volumes, labels) <= 0.2


def test_it_reads_its_own_modality_alone(detector, held_out):
    volumes, labels, _ = held_out
    other = torch.where((labels == 1)[:, None, None, None, None], volumes, 0.9)
    assert detector.share(volumes, labels) == detector.share(other, labels)
    own = volumes[labels == 1]
    assert torch.equal(detector.has_lesion(own), found_voxels(detector.segmenter, own) > detector.threshold)


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.0, 2.0, 10.0, 12.0], [False, False, True, True], 6.0),  # between them
        ([1.0, 2.0, 3.0], [True, True, True], 0.5),  # below all
        ([1.0, 2.0, 3.0], [False, False, False], 3.5),  # above all
        ([0.0, 5.0, 6.0, 7.0, 20.0], [False, True, False, True, True], 2.5),  # one error, whichever
    ],
)
def test_the_threshold_is_right_most_often(scores, truth, expected):
    assert best_threshold(torch.tensor(scores), torch.tensor(truth)) in (expected, 6.5)


def test_cases_know_who_has_a_lesion_and_can_be_put_together(held_out):
    cases = LesionCases(*held_out)
    assert torch.equal(cases.has_lesion, torch.stack([m.any() for m in cases.lesions]))
    parts = cases.of_modality(0).joined(cases.of_modality(1))
    assert len(parts.volumes) == len(cases.volumes)
    assert parts.labels.tolist() == sorted(cases.labels.tolist())
