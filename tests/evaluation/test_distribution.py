import pytest
import torch

from prod9.evaluation.sets.distribution import diversity_ratio, frechet_ratio, mean_pairwise_distance
from prod9.measures.metrics import frechet_distance


def _features(count, *, seed, shift=0.0):
    return shift + torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def _generator():
    return torch.Generator().manual_seed(0)


def test_frechet_ratio_of_like_sets_is_about_one_and_grows_with_the_shift():
    training, held_out = _features(400, seed=0), _features(200, seed=1)
    ratios = [
        frechet_ratio(_features(100, seed=2, shift=s), training, held_out, generator=_generator()).ratio
        for s in (0.0, 0.3, 1.0)
    ]
    assert 0.7 < ratios[0] < 1.4
    assert ratios[0] < ratios[1] < ratios[2]


def test_frechet_ratio_compares_equal_numbers_of_equal_classes():
    # Class 1 lies far off; a floor with another share of it would be far too high.
    labels = torch.tensor([0] * 300 + [1] * 100)
    training = _features(400, seed=0) + 20.0 * labels[:, None]
    made = torch.tensor([0] * 40 + [1] * 40)
    generated = _features(80, seed=1) + 20.0 * made[:, None]
    held_out = _features(80, seed=2) + 20.0 * made[:, None]
    score = frechet_ratio(
        generated, training, held_out, generator=_generator(), generated_labels=made, training_labels=labels
    )
    assert score.num_samples == 80
    assert score.num_reference == 80
    assert score.dimensions == 8
    assert score.distance == pytest.approx(frechet_distance(generated, held_out).item())
    assert 0.3 < score.ratio < 3.0


def test_frechet_ratio_refuses_what_it_cannot_match():
    x = _features(10, seed=0)
    with pytest.raises(ValueError, match="at least 20 volumes"):
        frechet_ratio(_features(20, seed=1), x, x, generator=_generator())
    with pytest.raises(ValueError, match="both sets or for neither"):
        frechet_ratio(x, x, x, generator=_generator(), generated_labels=torch.zeros(10, dtype=torch.int64))


def test_mean_pairwise_distance_of_three_constants():
    volumes = torch.tensor([0.0, 0.1, 0.4]).view(3, 1, 1, 1, 1).expand(3, 1, 2, 2, 2)
    assert mean_pairwise_distance(volumes) == pytest.approx((0.1 + 0.4 + 0.3) / 3)
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise_distance(volumes[:1])


def test_diversity_looks_within_classes():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    noise = torch.rand(6, 1, 4, 4, 4, generator=_generator())
    real = noise + 10.0 * labels.view(-1, 1, 1, 1, 1)
    half = 0.5 * noise + 20.0 * labels.view(-1, 1, 1, 1, 1)
    both = {"generated_labels": labels, "held_out_labels": labels}
    assert diversity_ratio(real, real, **both) == pytest.approx(1.0)
    assert diversity_ratio(half, real, **both) == pytest.approx(0.5, rel=1e-3)
    assert diversity_ratio(real[[0, 0, 0, 3, 3, 3]], real, **both) == 0.0
