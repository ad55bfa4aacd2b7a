"""Tokens to positions and back: p³ neighbouring tokens share one position of the transformer."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def fold(x: Float[Tensor, "B h w d C"], patch_size: int) -> Float[Tensor, "B n PC"]:
    """Return one row a position: the C channels of each of its p³ tokens, last axis fastest."""
    p = patch_size
    if p == 1:
        return x.flatten(1, 3)
    b, *grid, c = x.shape
    h, w, d = positions_grid(grid, p)
    return x.reshape(b, h, p, w, p, d, p, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, h * w * d, p**3 * c)


def unfold(x: Float[Tensor, "B n PC"], grid: Sequence[int], patch_size: int) -> Float[Tensor, "B h w d C"]:
    """Undo ``fold`` for tokens on ``grid``."""
    p, b = patch_size, x.shape[0]
    if p == 1:
        return x.unflatten(1, tuple(grid))
    h, w, d = positions_grid(grid, p)
    return x.reshape(b, h, w, d, p, p, p, -1).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, *grid, -1)


def positions_grid(grid: Sequence[int], patch_size: int) -> tuple[int, int, int]:
    """Return the grid of positions; refuses a token grid that the patch does not divide."""
    if any(side % patch_size for side in grid):
        fit = tuple(-(-side // patch_size) * patch_size for side in grid)
        raise ValueError(
            f"Token grid must be a multiple of patch_size={patch_size} on each axis, got {tuple(grid)}; "
            f"use {fit} or another patch_size."
        )
    h, w, d = (side // patch_size for side in grid)
    return h, w, d


@functools.lru_cache(maxsize=64)
def folded_slots(grid: tuple[int, ...], patch_size: int, device: torch.device) -> Int64[Tensor, " L"]:
    """Return where each token of the grid lies after folding: position · p³ + place within the patch."""
    length = grid[0] * grid[1] * grid[2]
    order = fold(torch.arange(length, device=device).float().view(1, *grid, 1), patch_size).flatten().long()
    return torch.empty_like(order).scatter_(0, order, torch.arange(length, device=device))
