"""Folding voxels, or their Haar bands, into channels loses nothing and keeps neighbours together."""

import pytest
import torch

from prod9.autoencoder.native.voxel_folding import (
    FRONT_ENDS,
    fold_bands,
    fold_voxels,
    unfold_bands,
    unfold_voxels,
)
from prod9.config.schema import FSQModelConfig, KLModelConfig
from tests.autoencoder.tiny import build, volume


@pytest.mark.parametrize("n", [1, 2, 3])
def test_folding_loses_nothing_and_keeps_neighbours_together(n):
    x = torch.arange(2 * 2 * 6 * 12 * 18.0).view(2, 2, 6, 12, 18)
    folded = fold_voxels(x, n)
    assert folded.shape == (2, 2 * n**3, 6 // n, 12 // n, 18 // n)
    assert torch.equal(unfold_voxels(folded, n), x)
    assert torch.equal(folded[0, : n**3, 1, 1, 1], x[0, 0, n : 2 * n, n : 2 * n, n : 2 * n].flatten())


def haar_matrix(n):
    """The bands of each voxel of a block, as columns: ``[n³ n³]``."""
    blocks = torch.eye(n**3, dtype=torch.float64).view(n**3, 1, n, n, n)
    return fold_bands(blocks, n).flatten(1).T


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_haar_bands_are_the_folded_voxels_times_an_orthogonal_matrix(n):
    x, matrix = volume(2, 3, 8, 16, 24).double(), haar_matrix(n)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n**3, dtype=torch.float64))
    folded = fold_voxels(x, n).unflatten(1, (3, n**3))
    expected = torch.einsum("ij,bcjhwd->bcihwd", matrix, folded).flatten(1, 2)
    torch.testing.assert_close(fold_bands(x, n), expected)
    torch.testing.assert_close(unfold_bands(expected, n), x)


def test_the_matrix_of_one_level_is_the_product_of_three_haar_steps():
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(haar_matrix(2), torch.kron(torch.kron(step, step), step))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-2)])
def test_haar_bands_keep_energy_and_type_and_are_undone(dtype, tolerance):
    x = volume(1, 2, 8, 8, 16).to(dtype)
    bands = fold_bands(x, 4)
    assert bands.dtype == dtype
    assert bands.shape == (1, 128, 2, 2, 4)
    torch.testing.assert_close(bands.square().sum(), x.square().sum(), rtol=tolerance, atol=0.0)
    torch.testing.assert_close(unfold_bands(bands, 4), x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [2, 4])
def test_a_constant_volume_has_a_low_band_alone_and_bands_are_ordered_from_coarse_to_fine(n):
    bands = fold_bands(torch.full((1, 2, 8, 8, 8), 3.0), n).unflatten(1, (2, n**3))
    torch.testing.assert_close(bands[:, :, 0], torch.full_like(bands[:, :, 0], 3.0 * n**1.5))
    assert not bands[:, :, 1:].any()
    # What is constant in blocks of two has no details of the finest level.
    coarse = volume(1, 1, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert not fold_bands(coarse, n)[:, (n // 2) ** 3 :].any()


def test_a_network_reads_bands_as_it_reads_voxels_through_turned_weights():
    folded, haar = build(space_to_depth=2), build(space_to_depth=2, front_end="haar")
    matrix = haar_matrix(2).float()
    haar.load_state_dict(folded.state_dict())
    first, last = haar.encoder.blocks[0].conv.conv, haar.decoder.blocks[-1].conv.conv
    with torch.no_grad():
        first.weight.copy_(torch.einsum("oi...,ji->oj...", first.weight, matrix))
        last.weight.copy_(torch.einsum("ji,i...->j...", matrix, last.weight))
        last.bias.copy_(matrix @ last.bias)
    x = volume(1, 1, 16, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(haar.encode(x), folded.encode(x), rtol=1e-4, atol=1e-5)
        z = torch.rand(1, 3, 2, 2, 3)
        torch.testing.assert_close(haar.decode(z), folded.decode(z), rtol=1e-4, atol=1e-5)
    assert set(haar.state_dict()) == set(folded.state_dict())


def test_autocast_does_not_round_the_bands():
    x = volume(1, 1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        bands = fold_bands(x, 2)
    assert torch.equal(bands, fold_bands(x, 2))


@pytest.mark.parametrize("n", [1, 3, 6])
def test_haar_needs_a_power_of_two(n):
    with pytest.raises(ValueError, match="space_to_depth: expected a power of 2 from 2 on"):
        build(space_to_depth=n, front_end="haar")
    for section in (FSQModelConfig, KLModelConfig):
        with pytest.raises(ValueError, match="space_to_depth: expected a power of 2 from 2 on"):
            section(space_to_depth=n, front_end="haar")


def test_other_front_ends_are_refused_by_name():
    with pytest.raises(ValueError, match="front_end: expected fold or haar, got 'daubechies'"):
        build(space_to_depth=2, front_end="daubechies")
    assert set(FRONT_ENDS) == set(FSQModelConfig.model_fields["front_end"].annotation.__args__)
