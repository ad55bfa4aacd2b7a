"""Scores of two sets of features that need no Gaussian: kernel distances, precision, recall, density, coverage."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Features = Float[Tensor, "N D"]
Kernel = Float[Tensor, "N M"]
Matrix = Float[Tensor, "_ _"]

NEIGHBOURS = 5
"""The k of ``prdc``, as its authors set it (Naeem et al. 2020)."""


def polynomial_kernel(a: Features, b: Float[Tensor, "M D"]) -> Kernel:
    """Return (a·b / D + 1)³, the kernel of the Kernel Inception Distance (Bińkowski et al. 2018), in float64."""
    return (a.double() @ b.double().mT / a.shape[1] + 1) ** 3


def gaussian_kernel(a: Features, b: Float[Tensor, "M D"], *, bandwidth: float) -> Kernel:
    """Return exp(−|a − b|² / 2 bandwidth²), in float64."""
    return torch.exp(-pairwise_distances(a, b).square() / (2 * bandwidth**2))


def squared_mmd(within_a: Matrix, within_b: Matrix, between: Matrix) -> float:
    """Return the unbiased squared maximum mean discrepancy from three matrices of kernel values.

    Sets may differ in size. Unbiased means that two samples of one distribution give 0 on average, so values
    below 0 occur. Raises ValueError for fewer than 2 samples on a side.
    """
    n, m = between.shape
    if min(n, m) < 2:
        raise ValueError(f"both sets must hold at least 2 samples, got {n} and {m}; add samples")
    own = (within_a.sum() - within_a.diagonal().sum()) / (n * (n - 1))
    other = (within_b.sum() - within_b.diagonal().sum()) / (m * (m - 1))
    return (own + other - 2 * between.mean()).item()


def kernel_distance(a: Features, b: Float[Tensor, "M D"]) -> float:
    """Return the squared MMD with the polynomial kernel: the KID of these features, over all pairs at once."""
    return squared_mmd(polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b))


@dataclass(frozen=True)
class Manifold:
    """What each sample says of fidelity and cover; the scores are the means.

    precision: whether a generated sample lies in the ball of some real one (radius: its k-th neighbour among
    the real). density: in how many such balls, over k. recall: whether a real sample lies in the ball of some
    generated one. coverage: whether the ball of a real sample holds a generated one. Precision, recall and
    coverage are 0 or 1 each; copies of the real set score 1 in all of them: they say nothing of copying.
    """

    precision: Float[Tensor, " N"]
    density: Float[Tensor, " N"]
    recall: Float[Tensor, " M"]
    coverage: Float[Tensor, " M"]

    def means(self) -> dict[str, float]:
        """Return the four scores."""
        return {name: values.mean().item() for name, values in vars(self).items()}


def compare_manifolds(
    generated: Features, real: Float[Tensor, "M D"], *, neighbours: int = NEIGHBOURS
) -> Manifold:
    """Compare neighbourhoods (Kynkäänniemi et al. 2019, Naeem et al. 2020), Euclidean, in float64.

    Raises ValueError when a set has no more than ``neighbours`` samples.
    """
    return manifold_of_distances(
        pairwise_distances(generated, generated),
        pairwise_distances(real, real),
        pairwise_distances(generated, real),
        neighbours=neighbours,
    )


def manifold_of_distances(
    within_generated: Matrix,
    within_real: Matrix,
    between: Matrix,
    *,
    neighbours: int = NEIGHBOURS,
) -> Manifold:
    """Return what :func:`compare_manifolds` does, from distances that are known: generated × real and within each."""
    n, m = between.shape
    if min(n, m) <= neighbours:
        raise ValueError(
            f"both sets must hold more than {neighbours} samples, got {n} and {m}; add "
            "samples, or compare fewer neighbours"
        )
    # The nearest of all is the sample itself.
    made_radius, real_radius = (
        within.kthvalue(neighbours + 1, dim=1).values for within in (within_generated, within_real)
    )
    inside_real = between < real_radius[None]
    inside_made = between < made_radius[:, None]
    return Manifold(
        precision=inside_real.any(1).double(),
        density=inside_real.double().sum(1) / neighbours,
        recall=inside_made.any(0).double(),
        # Nearest generated sample within the radius is the same as any within it.
        coverage=inside_real.any(0).double(),
    )


def pairwise_distances(a: Features, b: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Return Euclidean distances in float64."""
    # Without the matrix product, whose rounding gives copies a distance above 0.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
