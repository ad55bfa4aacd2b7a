"""In which order hidden tokens are revealed when the order is fixed beforehand.

Tokens revealed in one step are drawn independently of each other, so those close together should not share
a step. Halton's sequence (arXiv 2503.17076 for images) spreads them; here in three dimensions.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

_BASES = (2, 3, 5)


def _radical_inverse(index: np.ndarray, base: int) -> np.ndarray:
    """Mirror the digits of ``index`` in ``base`` behind the point: the van der Corput sequence."""
    value, scale, rest = np.zeros(len(index)), 1.0 / base, index.copy()
    while rest.any():
        value += rest % base * scale
        rest //= base
        scale /= base
    return value


@functools.lru_cache(maxsize=32)
def halton_order(grid: tuple[int, int, int]) -> np.ndarray:
    """Return the flattened cells of ``grid`` in the order in which Halton's points first visit them.

    The smallest base goes to the longest axis, where evenness matters most. The sequence is continued until
    every cell was visited (a 16³ grid needs 15,357 points). Cached per grid; don't write into the result.
    """
    longest_first = sorted(range(3), key=lambda axis: -grid[axis])
    base_of = dict(zip(longest_first, _BASES, strict=True))
    length = int(np.prod(grid))
    first_visit = np.full(length, np.iinfo(np.int64).max)
    start, missing = 0, length
    while missing:
        index = np.arange(start, start + max(4 * length, 256))
        axes = [np.floor(_radical_inverse(index, base_of[a]) * grid[a]).astype(np.int64) for a in range(3)]
        cells = np.ravel_multi_index(axes, grid)
        np.minimum.at(first_visit, cells, index)
        missing = int((first_visit == np.iinfo(np.int64).max).sum())
        start = int(index[-1]) + 1
    return np.argsort(first_visit, kind="stable")


def halton(grid: tuple[int, int, int], generator: torch.Generator) -> Int64[Tensor, " L"]:
    """Halton's order, begun at a random place: each sample has its own."""
    order = torch.from_numpy(halton_order(grid)).to(generator.device)
    start = torch.randint(len(order), (), generator=generator, device=generator.device)
    return order.roll(int(start))


def random(grid: tuple[int, int, int], generator: torch.Generator) -> Int64[Tensor, " L"]:
    """Any order, each equally likely."""
    return torch.randperm(grid[0] * grid[1] * grid[2], generator=generator, device=generator.device)


FIXED_ORDERS: dict[str, Callable[[tuple[int, int, int], torch.Generator], Tensor]] = {
    "halton": halton,
    "random": random,
}


def draw_orders(
    order: str, grid: tuple[int, int, int], generators: Sequence[torch.Generator], device: torch.device
) -> Int64[Tensor, "B L"]:
    """Return a permutation of the cells for each sample, each from its own generator."""
    return torch.stack([FIXED_ORDERS[order](grid, g).to(device) for g in generators])
