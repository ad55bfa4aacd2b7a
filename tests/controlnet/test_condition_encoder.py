"""ConditionEncoder: nothing at first, every voxel reaches its cell, absence is not background."""

import pytest
import torch

from prod9.controlnet.condition_encoder import ConditionEncoder


def make_encoder(**kwargs):
    torch.manual_seed(0)
    settings = {"in_channels": 3, "num_labels": 4, "out_channels": 8, "downsampling_factor": 4}
    return ConditionEncoder(**(settings | {"channels": (4, 6)} | kwargs))


def awake(encoder):
    """Give the last convolution weights, so that what it is fed shows."""
    torch.nn.init.normal_(encoder.out.weight)
    return encoder


def make_planes(batch=2, grid=(8, 12, 4)):
    return torch.rand(batch, 3, *grid, generator=torch.Generator().manual_seed(0))


LABEL = torch.tensor([0, 3])


def test_it_adds_nothing_at_first():
    features = make_encoder()(make_planes(), LABEL, grid=(2, 3, 1))
    assert features.shape == (2, 8, 2, 3, 1)
    assert not features.any()


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 12])
def test_any_factor_reaches_the_grid(factor):
    encoder = awake(make_encoder(downsampling_factor=factor, num_labels=0))
    planes = make_planes(1, (2 * factor, factor, 3 * factor))
    assert encoder(planes, None, grid=(2, 1, 3)).shape == (1, 8, 2, 1, 3)


def test_a_single_voxel_moves_its_cell_and_its_neighbours_only():
    encoder = awake(make_encoder(num_labels=0))
    nothing = torch.zeros(1, 3, 32, 4, 4)
    one = nothing.clone()
    one[0, 1, 13, 2, 2] = 1.0
    moved = (encoder(one, None, grid=(8, 1, 1)) - encoder(nothing, None, grid=(8, 1, 1))).abs().amax(1)
    assert moved[0, 3] > 0
    assert not moved[0, 7].any()


def test_dropped_samples_are_encoded_as_if_nothing_were_known():
    encoder = awake(make_encoder())
    planes, dropped = make_planes(), torch.tensor([True, False])
    told = encoder(planes, LABEL, grid=(2, 3, 1))
    some = encoder(planes, LABEL, grid=(2, 3, 1), dropped=dropped)
    torch.testing.assert_close(some[1], told[1])
    other = encoder(1 - planes, LABEL.flip(0), grid=(2, 3, 1), dropped=dropped)
    torch.testing.assert_close(some[0], other[0])


def test_a_label_alone_needs_no_planes():
    encoder = awake(make_encoder(in_channels=0))
    features = encoder(None, LABEL, grid=(1, 1, 1))
    assert not torch.equal(features[0], features[1])
    assert all(parameter.numel() for parameter in encoder.parameters())


def test_every_parameter_is_used():
    encoder = awake(make_encoder())
    encoder(make_planes(), LABEL, grid=(2, 3, 1)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("planes", "label", "grid", "text"),
    [
        (None, LABEL, (2, 3, 1), "no planes"),
        (make_planes(), None, (2, 3, 1), "no label"),
        (make_planes(), LABEL, (2, 3, 2), r"\(8, 12, 8\) voxels"),
    ],
)
def test_what_does_not_fit_is_refused(planes, label, grid, text):
    with pytest.raises(ValueError, match=text):
        make_encoder()(planes, label, grid=grid)


def test_an_encoder_of_nothing_is_refused():
    with pytest.raises(ValueError, match="planes, labels or both"):
        make_encoder(in_channels=0, num_labels=0)
