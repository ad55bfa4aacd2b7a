"""Into and out of a transformer over tokens: what every network that reads and predicts tokens does alike."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prod9.generator.folding import fold, folded_slots, positions_grid, unfold
from prod9.generator.heads import TokenLogits, TokenVocabulary
from prod9.generator.modules import SinCosPosEmbed
from prod9.types import TokenGrid, TokenMask


def embed_tokens(
    tokens: TokenGrid,
    mask: TokenMask,
    *,
    vocabulary: TokenVocabulary,
    projection: nn.Module,
    positions: SinCosPosEmbed,
    patch_size: int,
) -> Float[Tensor, "B n E"]:
    """Return the input of the first block: folded codes and mask flags, projected, plus positions.

    projection: linear, from p³ · (Z + 1) features to E. Entries where ``mask`` is True are not looked at.
    """
    grid = positions_grid(tokens.shape[1:], patch_size)
    codes = F.embedding(tokens, vocabulary.codes).masked_fill(mask[..., None], 0.0)
    inputs = torch.cat([codes, mask[..., None].to(codes.dtype)], dim=-1)
    return projection(fold(inputs, patch_size)) + positions(grid)


def predict_tokens(
    features: Float[Tensor, "B n E"],
    *,
    head: nn.Module,
    vocabulary: TokenVocabulary,
    patch_size: int,
    grid: Sequence[int],
    rows: Int64[Tensor, " R"] | None,
) -> TokenLogits:
    """Apply ``head`` (linear, from E to p³ · K) to all positions, or to the flattened tokens ``rows`` alone."""
    if rows is None:
        return TokenLogits(unfold(head(features), grid, patch_size), vocabulary)
    flat = features.flatten(0, 1)
    if patch_size == 1:
        return TokenLogits(head(flat.index_select(0, rows)), vocabulary)
    every = head(flat).unflatten(-1, (patch_size**3, -1)).flatten(0, 1)
    return TokenLogits(every.index_select(0, folded_slots(rows, grid, patch_size)), vocabulary)
