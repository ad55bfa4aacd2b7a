"""Correlation of ranks: do two numbers grow together, on whatever scales they are."""

import torch
from jaxtyping import Float
from torch import Tensor


def rank_correlation(a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; NaN where one of them is constant. Equal values share a rank.

    C. Spearman, "The proof and measurement of association between two things", American Journal of Psychology 15, 1904.

    Example:
        >>> import torch
        >>> from prod9.measures.ranks import rank_correlation
        >>> round(rank_correlation(torch.tensor([1.0, 2.0, 30.0]), torch.tensor([0.1, 0.2, 0.3])), 6)
        1.0
    """
    ranks = torch.stack([_ranks(a), _ranks(b)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    size = ranks.square().sum(1).prod().sqrt()
    return (ranks[0] * ranks[1]).sum().div(size).item()


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value, the mean of their ranks for equal ones."""
    _, place, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]
