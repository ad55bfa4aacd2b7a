"""Tokens to positions and back: p³ neighbouring tokens share one position of the transformer."""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor

from prod9.autoencoder.checks import require_multiples


def fold(x: Float[Tensor, "B h w d C"], patch_size: int) -> Float[Tensor, "B n PC"]:
    """Return one row per position: the C channels of each of its p³ tokens, last axis fastest."""
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
    channels = x.shape[2] // p**3
    return (
        x.reshape(b, h, w, d, p, p, p, channels).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, *grid, channels)
    )


def positions_grid(grid: Sequence[int], patch_size: int) -> tuple[int, int, int]:
    """Return the grid of positions; ValueError for a token grid that ``patch_size`` does not divide."""
    require_multiples(grid, patch_size, "token grid (patch_size)")
    h, w, d = (side // patch_size for side in grid)
    return h, w, d


def folded_slots(rows: Int64[Tensor, " R"], grid: Sequence[int], patch_size: int) -> Int64[Tensor, " R"]:
    """Return where tokens lie after folding: (sample · n + position) · p³ + place within the patch.

    rows: flattened indices into ``[B h w d]``.
    """
    p, (h, w, d) = patch_size, positions_grid(grid, patch_size)
    k, rest = rows % (d * p), rows // (d * p)
    j, rest = rest % (w * p), rest // (w * p)
    i, sample = rest % (h * p), rest // (h * p)
    position = ((sample * h + i // p) * w + j // p) * d + k // p
    return ((position * p + i % p) * p + j % p) * p + k % p
