import pytest
import torch
from torch import nn

from prod9.evaluation.judges.classifier import train_classifier
from prod9.evaluation.judges.features import (
    AutoencoderFeatures,
    ClassifierFeatures,
    RandomFeatures,
    extract,
    fingerprint,
)


class Encoder(nn.Module):
    def __init__(self, *, pair):
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 2, stride=2)
        self.pair = pair

    def encode(self, x):
        z = self.conv(x)
        return (z, torch.ones_like(z)) if self.pair else z


@pytest.mark.parametrize("pair", [True, False])
def test_autoencoder_features_are_means_over_cells(pair):
    encoder = Encoder(pair=pair)
    x = torch.rand(2, 1, 8, 8, 8)
    features = extract(AutoencoderFeatures(encoder, scales=(1, 2)), x)
    z = encoder.conv(x).detach()
    assert features.shape == (2, 3 * (1 + 8))
    torch.testing.assert_close(features[:, :3], z.mean((2, 3, 4)))
    torch.testing.assert_close(features[0, 3], z[0, 0, :2, :2, :2].mean())
    assert not features.requires_grad


def test_random_features_follow_from_the_seed():
    x = torch.rand(3, 1, 16, 16, 16)
    first, again, other = (extract(RandomFeatures(seed=seed), x) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.shape == (3, 112)


def test_batches_do_not_matter():
    x = torch.rand(5, 1, 16, 16, 16)
    extractor = RandomFeatures(seed=0)
    torch.testing.assert_close(extract(extractor, x, batch_size=2), extract(extractor, x, batch_size=5))


def test_names_tell_weights_apart(brains):
    volumes, labels, _ = brains
    classifier = train_classifier(volumes, labels, num_classes=2, seed=0, steps=1, batch_size=2)
    name = ClassifierFeatures(classifier).name
    assert name == f"classifier-{fingerprint(classifier)}"
    assert extract(ClassifierFeatures(classifier), volumes[:2]).shape == (2, 28 * 32)
    classifier.head.bias += 1.0
    assert ClassifierFeatures(classifier).name != name
    assert RandomFeatures(seed=3).name == "random-3"
