import numpy as np
import pytest
import torch

from prod9.evaluation.baselines import fit_copy, fit_regression, match_histogram, mean_quantiles


def heads(count, num_sources, *, seed, side=10):
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.rand(count, num_sources, side, side, side, generator=generator).mul(0.8).add(0.1)
    volumes[:, :, :3] = 0.0  # background
    return volumes


def test_regression_finds_a_planted_map():
    sources = heads(4, 3, seed=0)
    weights = torch.tensor([0.5, -0.2, 0.3])
    target = torch.einsum("nshwd,s->nhwd", sources, weights)[:, None] + 0.2
    target[:, :, :3] = 0.0
    model = fit_regression(sources, target)
    torch.testing.assert_close(model.weights, torch.tensor([0.5, -0.2, 0.3, 0.2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(model(sources), target, atol=1e-5, rtol=0)


def test_regression_survives_copies_among_the_sources():
    one = heads(2, 1, seed=1)
    model = fit_regression(one.expand(-1, 2, -1, -1, -1), one)
    torch.testing.assert_close(model(one.expand(-1, 2, -1, -1, -1)), one, atol=1e-4, rtol=0)


def test_histogram_matching_undoes_any_growing_map():
    volumes = heads(3, 1, seed=2)
    own = mean_quantiles(volumes[:1])
    # Interpolated between 256 ranks, hence the tolerance.
    torch.testing.assert_close(match_histogram(volumes[:1] ** 3, own), volumes[:1], atol=5e-3, rtol=0)


def test_histogram_matching_agrees_with_the_definition():
    """CDF of the reference inverted at the CDF of the source, by numpy's interpolation."""
    volume, reference = heads(1, 1, seed=3)[0, 0], heads(1, 1, seed=4)[0, 0] ** 2
    quantiles = mean_quantiles(reference[None, None])
    matched = match_histogram(volume[None, None], quantiles)[0, 0]
    inside = volume > 0
    values = volume[inside].numpy()
    rank = np.argsort(np.argsort(values)) / (len(values) - 1)
    expected = np.quantile(reference[reference > 0].numpy(), rank)
    assert np.abs(matched[inside].numpy() - expected).max() < 5e-3
    assert not matched[~inside].any()


def test_equal_intensities_stay_equal():
    volume = torch.tensor([0.0, 0.2, 0.2, 0.2, 0.7, 0.9]).view(1, 1, 6, 1, 1)
    matched = match_histogram(volume, torch.linspace(0.5, 1.0, 256))[0, 0, :, 0, 0]
    assert matched[0] == 0
    assert matched[1] == matched[2] == matched[3]
    assert matched.tolist() == sorted(matched.tolist())
    assert matched[3:].tolist() == pytest.approx([0.625, 0.875, 1.0], abs=1e-3)


def test_the_copy_is_the_source_that_looks_like_the_target():
    sources = heads(3, 3, seed=5)
    target = sources[:, 1:2].sqrt()
    copy = fit_copy(sources, target)
    assert copy.source == 1
    assert (copy(sources) - target).abs().max() < 0.02


def test_an_empty_volume_stays_empty():
    empty = torch.zeros(1, 2, 4, 4, 4)
    assert not match_histogram(empty[:, :1], torch.linspace(0, 1, 8)).any()
