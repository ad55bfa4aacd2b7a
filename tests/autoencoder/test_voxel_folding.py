"""Folding voxels into channels loses nothing and keeps neighbours together."""

import pytest
import torch

from prod9.autoencoder.native.voxel_folding import fold_voxels, unfold_voxels


@pytest.mark.parametrize("n", [1, 2, 3])
def test_folding_loses_nothing_and_keeps_neighbours_together(n):
    x = torch.arange(2 * 2 * 6 * 12 * 18.0).view(2, 2, 6, 12, 18)
    folded = fold_voxels(x, n)
    assert folded.shape == (2, 2 * n**3, 6 // n, 12 // n, 18 // n)
    assert torch.equal(unfold_voxels(folded, n), x)
    assert torch.equal(folded[0, : n**3, 1, 1, 1], x[0, 0, n : 2 * n, n : 2 * n, n : 2 * n].flatten())
