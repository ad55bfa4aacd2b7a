"""Scores of two sets of features that assume no Gaussian: kernel distances, precision, recall, density, coverage."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.evaluation.sets.members import Members, as_members

Features = Float[Tensor, "N D"]
Kernel = Float[Tensor, "N M"]
Matrix = Float[Tensor, "_ _"]

NEIGHBOURS = 5
"""The k of precision, recall, density and coverage, as in Naeem et al. (2020)."""


def polynomial_kernel(a: Features, b: Float[Tensor, "M D"]) -> Kernel:
    """Return (a·b / D + 1)³, the kernel of the Kernel Inception Distance (Bińkowski et al. 2018), in float64."""
    return (a.double() @ b.double().mT / a.shape[1] + 1) ** 3


def squared_mmd(
    within_a: Matrix,
    within_b: Matrix,
    between: Matrix,
    *,
    members: tuple[Members, Members] | None = None,
) -> float:
    """Return the unbiased squared maximum mean discrepancy from three matrices of kernel values.

    Sets may differ in size. Unbiased means that two samples of one distribution give 0 on average, so values below 0
    occur. Raises ValueError for fewer than 2 samples in a set.

    Args:
        within_a: kernel of the first set with itself.
        within_b: kernel of the second set with itself.
        between: kernel of both sets.
        members: patients of the samples. Each patient then counts once, whatever its number of volumes, and pairs of
            one patient's volumes are left out: they resemble each other, and would make every set seem far from every
            other one. NaN without pairs of different patients.
    """
    n, m = between.shape
    if min(n, m) < 2:
        raise ValueError(f"expected at least 2 samples in both sets, got {n} and {m}; add samples")
    if members is None:
        own = (within_a.sum() - within_a.diagonal().sum()) / (n * (n - 1))
        other = (within_b.sum() - within_b.diagonal().sum()) / (m * (m - 1))
        return (own + other - 2 * between.mean()).item()
    a, b = members
    return (_mean_pair(within_a, a, a) + _mean_pair(within_b, b, b) - 2 * _mean_pair(between, a, b)).item()


def _mean_pair(kernel: Matrix, one: Members, other: Members) -> Tensor:
    weight = one.weights[:, None] * other.weights * (one.patients[:, None] != other.patients)
    return (kernel * weight).sum() / weight.sum()


def standardised(a: Features, b: Float[Tensor, "M D"]) -> tuple[Features, Float[Tensor, "M D"]]:
    """Return both sets with each feature of ``b`` brought to mean 0 and about deviation 1, in float64.

    The polynomial kernel depends on the spread of features only where they are of the order of 1: with smaller ones it
    compares little but means, and a collapsed set scores as well as any other. Variances of few samples are shrunk
    towards their mean over the features, because one tiny variance would otherwise decide the result. Where no feature
    varies, they are shifted only.
    """
    a, b = a.double(), b.double()
    variance = b.var(0) if len(b) > 1 else torch.zeros_like(b[0])
    share = 2.0 / (len(b) + 2.0)
    variance = (1 - share) * variance + share * variance.mean()
    scale = torch.where(variance > 1e-18, variance, 1.0).sqrt()
    return (a - b.mean(0)) / scale, (b - b.mean(0)) / scale


def standardised_kid(
    a: Features, b: Float[Tensor, "M D"], *, members: tuple[Members, Members] | None = None
) -> float:
    """Return the squared MMD of :func:`standardised` features with the polynomial kernel; see :func:`squared_mmd`."""
    x, y = standardised(a, b)
    own, other = polynomial_kernel(x, x), polynomial_kernel(y, y)
    return squared_mmd(own, other, polynomial_kernel(x, y), members=members)


@dataclass(frozen=True)
class Manifold:
    """Fidelity and cover of each sample; the scores are the means.

    The ball of a sample reaches to its k-th neighbour in its own set. Copies of the real set score 1 everywhere: these
    scores do not detect copying.

    Attributes:
        precision: 1 for a generated sample in the ball of any real one, else 0.
        density: number of real balls that a generated sample lies in, over k.
        recall: 1 for a real sample in the ball of any generated one, else 0.
        coverage: 1 for a real sample whose ball holds a generated one, else 0.
    """

    precision: Float[Tensor, " N"]
    density: Float[Tensor, " N"]
    recall: Float[Tensor, " M"]
    coverage: Float[Tensor, " M"]

    def means(self) -> dict[str, float]:
        """Return the four scores."""
        return {name: values.mean().item() for name, values in vars(self).items()}


def compare_manifolds(
    generated: Features,
    real: Float[Tensor, "M D"],
    *,
    neighbours: int = NEIGHBOURS,
    members: tuple[Members, Members] | None = None,
) -> Manifold:
    """Compare neighbourhoods (Kynkäänniemi et al. 2019, Naeem et al. 2020), Euclidean, in float64.

    Raises ValueError when a sample has fewer than ``neighbours`` others in its set.

    Args:
        generated: features of the generated set.
        real: features of the real set.
        neighbours: the k of the balls' radii.
        members: patients of the samples; see :func:`manifold_of_distances`.

    Example:
        >>> import torch
        >>> from prod9.evaluation.sets.manifold import compare_manifolds
        >>> real = torch.arange(8.0)[:, None]
        >>> scores = compare_manifolds(real[:4], real, neighbours=1).means()
        >>> scores["precision"], scores["recall"]
        (1.0, 0.5)
    """
    return manifold_of_distances(
        pairwise_distances(generated, generated),
        pairwise_distances(real, real),
        pairwise_distances(generated, real),
        neighbours=neighbours,
        members=members,
    )


def manifold_of_distances(
    within_generated: Matrix,
    within_real: Matrix,
    between: Matrix,
    *,
    neighbours: int = NEIGHBOURS,
    members: tuple[Members, Members] | None = None,
) -> Manifold:
    """Return the result of :func:`compare_manifolds` from distances that are known.

    Args:
        within_generated: distances within the generated set.
        within_real: distances within the real set.
        between: distances of generated × real samples.
        neighbours: the k of the balls' radii.
        members: patients of the samples of both sets. Only volumes of other patients then count as neighbours: the
            volumes of one patient lie near each other, and balls that reach no farther hold nothing else.
    """
    n, m = between.shape
    if min(n, m) <= neighbours:
        raise ValueError(
            f"expected more than {neighbours} samples in both sets, got {n} and {m}; add samples, or compare fewer "
            "neighbours"
        )
    if members is None:
        members = as_members(n), as_members(m)
    made_radius, real_radius = (
        _radius(within, own, neighbours)
        for within, own in zip((within_generated, within_real), members, strict=True)
    )
    inside_real = between < real_radius[None]
    inside_made = between < made_radius[:, None]
    return Manifold(
        precision=inside_real.any(1).double(),
        density=inside_real.double().sum(1) / neighbours,
        recall=inside_made.any(0).double(),
        # The nearest generated sample is within the radius exactly if any is.
        coverage=inside_real.any(0).double(),
    )


def _radius(within: Matrix, members: Members, neighbours: int) -> Tensor:
    """Return the distance to the k-th neighbour of another patient."""
    same = members.patients[:, None] == members.patients
    others = int((~same).sum(1).min())
    if others < neighbours:
        raise ValueError(
            f"expected {neighbours} samples of other patients beside each one, got {others}; add patients, or compare "
            "fewer neighbours"
        )
    return within.masked_fill(same, torch.inf).kthvalue(neighbours, dim=1).values


def pairwise_distances(a: Features, b: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Return Euclidean distances in float64."""
    # Without the matrix product, whose rounding gives copies a distance above 0.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
