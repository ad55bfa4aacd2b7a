import pytest
import torch

from prod9.evaluation.sets.manifold import (
    NEIGHBOURS,
    compare_manifolds,
    gaussian_kernel,
    kernel_distance,
    polynomial_kernel,
    squared_mmd,
)


def test_gaussian_mmd_of_two_points_has_its_closed_form():
    a, b = torch.zeros(3, 2), torch.full((2, 2), 2.0)
    kernels = [gaussian_kernel(x, y, bandwidth=2.0) for x, y in ((a, a), (b, b), (a, b))]
    # |a − b|² = 8, so k(a, b) = exp(−8 / 8).
    assert squared_mmd(*kernels) == pytest.approx(2 - 2 * torch.exp(torch.tensor(-1.0)).item(), abs=1e-7)


def test_polynomial_kernel_by_hand():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert polynomial_kernel(a, b).item() == pytest.approx((1 / 2 + 1) ** 3)


def test_kernel_distance_is_about_zero_for_one_distribution_of_unequal_sizes():
    generator = torch.Generator().manual_seed(0)
    values = [
        kernel_distance(torch.randn(30, 4, generator=generator), torch.randn(50, 4, generator=generator))
        for _ in range(40)
    ]
    mean, deviation = torch.tensor(values).mean(), torch.tensor(values).std()
    assert abs(mean) < 3 * deviation / 40**0.5
    shifted = kernel_distance(
        torch.randn(30, 4, generator=generator) + 1, torch.randn(50, 4, generator=generator)
    )
    assert shifted > mean + 5 * deviation


def test_copies_score_full_marks_everywhere():
    real = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    scores = compare_manifolds(real.clone(), real).means()
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1.0


def test_a_collapsed_set_covers_one_neighbourhood():
    # Real points on a line at 0, 1, 2 …; all generated ones on the first.
    real = torch.arange(30.0)[:, None]
    made = torch.zeros(10, 1)
    scores = compare_manifolds(made, real, neighbours=2).means()
    # Balls that hold 0: radii are 2 at the end and 1 elsewhere (k-th of two), open.
    assert scores["coverage"] == pytest.approx(1 / 30)
    assert scores["precision"] == 1.0
    assert scores["recall"] == 0.0  # balls of radius 0 are empty


def test_far_away_volumes_have_no_precision():
    generator = torch.Generator().manual_seed(0)
    real, made = torch.randn(20, 3, generator=generator), torch.randn(15, 3, generator=generator) + 100
    assert set(compare_manifolds(made, real).means().values()) == {0.0}


def test_by_brute_force():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(12, 2, generator=generator), torch.randn(14, 2, generator=generator)

    def radius(points, i):
        return sorted(torch.dist(points[i], p).item() for p in points)[NEIGHBOURS]

    real_radius = [radius(b, j) for j in range(14)]
    near = torch.tensor([[torch.dist(x, b[j]) < real_radius[j] for j in range(14)] for x in a])
    made_radius = [radius(a, i) for i in range(12)]
    recall = [any(torch.dist(y, a[i]) < made_radius[i] for i in range(12)) for y in b]
    scores = compare_manifolds(a, b).means()
    assert scores["precision"] == pytest.approx(near.any(1).double().mean().item())
    assert scores["density"] == pytest.approx(near.double().sum().item() / NEIGHBOURS / 12)
    assert scores["coverage"] == pytest.approx(near.any(0).double().mean().item())
    assert scores["recall"] == pytest.approx(sum(recall) / 14)


def test_too_few_are_refused():
    with pytest.raises(ValueError, match=f"more than {NEIGHBOURS} samples, got 5 and 9"):
        compare_manifolds(torch.randn(5, 2), torch.randn(9, 2))
    with pytest.raises(ValueError, match="at least 2 samples, got 1 and 9"):
        kernel_distance(torch.randn(1, 2), torch.randn(9, 2))
