"""Orders of revealing tokens that do not depend on the network.

Tokens of one step are drawn independently of each other, so neighbours should not share a step. Halton's sequence
spreads them (arXiv 2503.17076, for images); here it has three dimensions.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
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

    The longest axis, where evenness matters most, has the smallest base. The sequence continues until every cell was
    visited (15,357 points for 16³). Cached per grid; the result must not be changed.
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
    """Return Halton's order, begun at a random place."""
    order = _halton_on(grid, generator.device)
    start = torch.randint(len(order), (), generator=generator, device=generator.device)
    # `roll` needs its shift on the host and would wait for the device.
    return order[(torch.arange(len(order), device=order.device) - start) % len(order)]


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _halton_on(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return Halton's order on ``device``; cached, since copying it there waits for the device."""
    return torch.from_numpy(halton_order(grid)).to(device)


def random(grid: tuple[int, int, int], generator: torch.Generator) -> Int64[Tensor, " L"]:
    """Return a random order; all are equally likely."""
    return torch.randperm(grid[0] * grid[1] * grid[2], generator=generator, device=generator.device)


FIXED_ORDERS: dict[str, Callable[[tuple[int, int, int], torch.Generator], Tensor]] = {
    "halton": halton,
    "random": random,
}


def draw_orders(
    order: str, grid: tuple[int, int, int], generators: Sequence[torch.Generator], device: torch.device
) -> Int64[Tensor, "B L"]:
    """Return a permutation of the cells for each sample, each from its own generator.

    Args:
        order: a key of ``FIXED_ORDERS``.
        grid: ``(h, w, d)``.
        generators: one for each sample.
        device: of the result.
    """
    return torch.stack([FIXED_ORDERS[order](grid, g).to(device) for g in generators])


class RevealQueue:
    """The hidden cells of each sample, in the order in which they will be revealed.

    orders: a permutation of the cells for each sample. hidden: True for hidden cells. counts: their number.
    """

    def __init__(
        self, orders: Int64[Tensor, "B L"], hidden: Bool[Tensor, "B L"], counts: Sequence[int]
    ) -> None:
        later = hidden.gather(1, orders).logical_not().long().argsort(dim=1, stable=True)
        ordered = orders.gather(1, later)
        self._waiting = [cells[:count] for cells, count in zip(ordered, counts, strict=True)]

    def take(self, counts: Sequence[int]) -> list[Tensor]:
        """Remove and return the next ``counts`` cells of each sample."""
        taken = [cells[:count] for cells, count in zip(self._waiting, counts, strict=True)]
        self._waiting = [cells[count:] for cells, count in zip(self._waiting, counts, strict=True)]
        return taken

    def insert(self, sample: int, cells: Int64[Tensor, " K"], places: Float[Tensor, " K"]) -> None:
        """Insert ``cells`` into the queue of ``sample``; place 0 is the front, 1 the end."""
        waiting = self._waiting[sample]
        steps = torch.arange(len(waiting), device=waiting.device)
        keys = torch.cat([steps.float(), places * (len(waiting) + 1) - 0.5])
        self._waiting[sample] = torch.cat([waiting, cells])[keys.argsort()]
