"""The Fréchet distance of many samples of the same rows, as a bootstrap asks for it."""

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64
from scipy.linalg import eigh
from torch import Tensor

from prod9.measures.metrics import principal_frechet

MOST_ROWS = 4096
"""Rows whose scalar products are kept: 128 MiB."""
Rows = Int64[Tensor, " n"]


class ResampledFrechet:
    """:func:`~prod9.measures.metrics.principal_frechet` of samples of fixed rows, several times as fast.

    With fewer rows than dimensions, the distance depends on the rows' scalar products alone. They are computed once,
    and a row that is drawn twice counts twice instead of being there twice: what is left per sample is the
    decomposition of a small matrix.

    Args:
        features: all rows that may be drawn. Of up to ``MOST_ROWS``, the scalar products are kept.

    Example:
        >>> import torch
        >>> from prod9.measures.resampled import ResampledFrechet
        >>> distance = ResampledFrechet(torch.randn(12, 50))
        >>> distance(torch.arange(6), torch.arange(6), directions=2) < 1e-9
        True
    """

    def __init__(self, features: Float[Tensor, "N D"]) -> None:
        """Keep ``features`` in float64."""
        self.features = features.double()
        self.finite = features.isfinite().all(1).numpy()

    @cached_property
    def products(self) -> np.ndarray:
        """Scalar products of all rows around their mean, where rounding is least: distances do not depend on it."""
        rows = self.features.nan_to_num(0.0, 0.0, 0.0)
        rows = rows - rows.mean(0)
        return (rows @ rows.mT).numpy()

    def __call__(self, a: Rows, b: Rows, *, directions: int) -> float:
        """Return the distance of the rows ``a`` to the rows ``b``; rows may repeat. NaN where one is not finite.

        Raises ValueError for fewer than 2 rows.
        """
        direct = min(len(a), len(b)) < 2 or len(a) + len(b) >= self.features.shape[1]
        if direct or len(self.features) > MOST_ROWS:
            return principal_frechet(self.features[a], self.features[b], directions=directions).item()
        drawn = [np.unique(side.numpy(), return_counts=True) for side in (a, b)]
        (rows_a, counts_a), (rows_b, counts_b) = drawn
        rows = np.concatenate([rows_a, rows_b])
        if not self.finite[rows].all():
            return float("nan")
        shares = np.concatenate([counts_a / len(a), counts_b / len(b)])
        products = self.products[np.ix_(rows, rows)]
        # Both sets count alike for the origin, whatever their sizes.
        to_middle = products @ (shares / 2)
        centred = products - to_middle - to_middle[:, None] + to_middle @ (shares / 2)
        scales = np.sqrt(shares)
        size = len(rows)
        values, vectors = eigh(
            scales[:, None] * centred * scales, subset_by_index=(max(0, size - directions), size - 1)
        )
        places = vectors * np.sqrt(np.clip(values, 0.0, None)) / scales[:, None]
        split = len(rows_a)
        return _weighted_frechet(places[:split], counts_a, places[split:], counts_b)


def _weighted_frechet(a: np.ndarray, counts_a: np.ndarray, b: np.ndarray, counts_b: np.ndarray) -> float:
    """Return the Fréchet distance of Gaussians fitted to points, each of which counts as often as it is said."""
    mean_a, root_a = _moments(a, counts_a)
    mean_b, root_b = _moments(b, counts_b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = (
        np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    )
    return max(float(distance), 0.0)


def _moments(points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and R with RᵀR the covariance."""
    number = counts.sum()
    mean = counts @ points / number
    root: np.ndarray = np.linalg.qr(np.sqrt(counts / (number - 1))[:, None] * (points - mean), mode="r")  # pyrefly: ignore[bad-assignment]
    return mean, root
