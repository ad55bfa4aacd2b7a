import pytest
import torch

from prod9.evaluation.judges.classifier import train_classifier


@pytest.fixture(scope="module")
def classifier(brains):
    volumes, labels, _ = brains
    return train_classifier(volumes, labels, num_classes=2, seed=0, steps=60, batch_size=8)


def test_it_learns_a_contrast(classifier, held_out):
    volumes, labels, _ = held_out
    assert classifier.accuracy(volumes, labels) >= 0.9
    assert classifier.accuracy(volumes, 1 - labels) <= 0.1


def test_it_does_not_go_by_scale(classifier, held_out):
    volumes, labels, _ = held_out
    assert classifier.accuracy(0.7 * volumes, labels) >= 0.9
    assert classifier.accuracy((volumes**0.8).clamp(0, 1), labels) >= 0.9


def test_probabilities_and_features(classifier, held_out):
    volumes = held_out[0]
    probabilities = classifier.probabilities(volumes, batch_size=3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(volumes)))
    assert torch.equal(classifier.predict(volumes), probabilities.argmax(1))
    assert classifier.features(volumes).shape == (len(volumes), 28 * 32)
    assert not any(p.requires_grad for p in classifier.parameters())


def test_training_follows_from_the_seed_and_leaves_the_global_one_alone(brains):
    volumes, labels, _ = brains
    state = torch.get_rng_state()
    first, second, other = (
        train_classifier(volumes, labels, num_classes=2, seed=seed, steps=2, batch_size=2)
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_large_volumes_are_averaged_down_first(classifier):
    assert classifier(torch.rand(1, 1, 130, 20, 66)).shape == (1, 2)
