"""Discriminator: features and logits, and volumes too small to judge."""

import pytest
import torch

from prod9.autoencoder.discriminator import Discriminator
from prod9.config.schema import DiscriminatorConfig
from tests.autoencoder.tiny import volume

NORMS = ("group", "instance", "batch", "none")


def build(**changes):
    return Discriminator(
        **{"channels": 4, "num_layers_d": 2, "in_channels": 1, "norm": "instance", **changes}
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels", [4, 6])
def test_the_last_feature_is_one_logit_a_patch(norm, channels):
    *features, logits = build(norm=norm, channels=channels)(volume(2, 1, 24, 20, 16))
    assert logits.shape == (2, 1, 4, 3, 2)
    assert [f.shape[1] for f in features] == [channels, 2 * channels, 4 * channels]


@pytest.mark.parametrize("num_layers_d", [1, 2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_side_works_and_one_less_does_not(norm, num_layers_d):
    network = build(norm=norm, num_layers_d=num_layers_d)
    side = network.minimum_side
    assert network(volume(1, 1, side, side, side))[-1].numel() == 1
    with pytest.raises(ValueError, match=f"at least {side}"):
        network(volume(1, 1, side, side, side - 1))


def test_samples_do_not_see_each_other():
    network, x = build(norm="group"), volume(2, 1, 16, 16, 16)
    torch.testing.assert_close(network(x)[-1][:1], network(x[:1])[-1])


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm: expected group"):
        build(norm="layer")


def test_it_takes_the_fields_of_its_section():
    assert isinstance(Discriminator(**DiscriminatorConfig().kwargs()), Discriminator)
