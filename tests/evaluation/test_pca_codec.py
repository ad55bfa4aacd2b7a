import pytest
import torch

from prod9.evaluation.pca_codec import fit_pca_codec


def test_all_coefficients_as_floats_lose_nothing(brains):
    volumes, _, _ = brains
    codec = fit_pca_codec(volumes, block=2, num_coefficients=8)
    torch.testing.assert_close(codec.reconstruct(volumes), volumes, atol=1e-5, rtol=0)


def test_many_levels_come_close_to_floats(brains):
    volumes, _, _ = brains
    exact = fit_pca_codec(volumes, block=4, num_coefficients=4).psnr_brain(volumes)
    scores = [
        fit_pca_codec(volumes, block=4, num_coefficients=4, levels=[n] * 4).psnr_brain(volumes)
        for n in (4, 16, 2048)
    ]
    assert scores[0] < scores[1] < scores[2] < exact
    assert scores[2] == pytest.approx(exact, abs=0.1)


def test_more_coefficients_are_better_and_the_basis_is_orthonormal(brains, held_out):
    codecs = [fit_pca_codec(brains[0], block=4, num_coefficients=k) for k in (1, 4, 16)]
    scores = [codec.psnr_brain(held_out[0]) for codec in codecs]
    assert scores == sorted(scores)
    torch.testing.assert_close(codecs[2].basis.T @ codecs[2].basis, torch.eye(16), atol=1e-5, rtol=0)


def test_bins_are_equally_filled_and_decode_to_their_mean():
    # Blocks of one voxel: the coefficient is the intensity itself, up to mean and sign.
    volumes = torch.arange(1, 28, dtype=torch.float32).view(1, 1, 3, 3, 3) / 30
    codec = fit_pca_codec(volumes, block=1, num_coefficients=1, levels=[3])
    expected = volumes.flatten().view(3, 9).mean(1).repeat_interleave(9)
    torch.testing.assert_close(codec.reconstruct(volumes).flatten(), expected)


def test_the_strongest_coefficient_gets_the_most_levels(brains):
    codec = fit_pca_codec(brains[0], block=2, num_coefficients=3, levels=[2, 7, 5])
    assert [len(c) for c in codec.centroids] == [7, 5, 2]
    assert [len(e) for e in codec.edges] == [6, 4, 1]


def test_sides_need_not_fit(brains):
    volumes = brains[0][:, :, :23, :, :21]
    codec = fit_pca_codec(volumes, block=4, num_coefficients=64)
    assert codec.reconstruct(volumes).shape == volumes.shape
    torch.testing.assert_close(codec.reconstruct(volumes), volumes, atol=1e-5, rtol=0)


def test_impossible_rates_are_refused(brains):
    with pytest.raises(ValueError, match="at most block³ = 8"):
        fit_pca_codec(brains[0], block=2, num_coefficients=9)
    with pytest.raises(ValueError, match="one entry per coefficient"):
        fit_pca_codec(brains[0], block=2, num_coefficients=3, levels=[8, 8])
