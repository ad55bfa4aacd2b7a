"""Parts of the transformer: 3D positions and the block that a condition modulates."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prod9.generator.context import BlockContext, attend

_MAX_PERIOD = 100.0
"""Tokens per radian of the slowest frequency: unambiguous on axes up to 300 tokens, and not constant on short ones."""


class SinCosPosEmbed(nn.Module):
    """Sine and cosine of the three grid coordinates at ``num_bands`` frequencies per axis, for any grid.

    embed_dim: width E; the 6 · num_bands features fill its first channels, and the rest are 0. num_bands: None for
    as many as fit (E // 6). Tables are cached per grid and not saved in checkpoints.

    Raises:
        ValueError: for more bands than fit, or none.

    Example:
        >>> from prod9.generator.modules import SinCosPosEmbed
        >>> positions = SinCosPosEmbed(embed_dim=32)
        >>> tuple(positions((4, 4, 2)).shape), len(positions.frequencies)
        ((32, 32), 5)
    """

    frequencies: Tensor

    def __init__(self, *, embed_dim: int, num_bands: int | None = None) -> None:
        super().__init__()
        bands = embed_dim // 6 if num_bands is None else num_bands
        if not 1 <= bands <= embed_dim // 6:
            raise ValueError(
                f"num_bands: expected 1 to embed_dim // 6 = {embed_dim // 6}, got {bands}; "
                "use fewer bands or a wider embedding"
            )
        self.embed_dim = embed_dim
        exponents = torch.arange(bands, dtype=torch.float32) / max(bands - 1, 1)
        self.register_buffer("frequencies", _MAX_PERIOD**-exponents)
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def forward(self, grid: Sequence[int], stride: int = 1) -> Float[Tensor, "n E"]:
        """Return one row per position, last axis of the grid fastest.

        stride: number of neighbours along each axis for which one entry of ``grid`` stands, placed in their middle.
        """
        if torch.compiler.is_compiling():
            # Compiled with the rest; a cache would have to be checked at every call.
            return self._table(grid, stride)
        key = (*grid, stride, self.frequencies.device)
        if key not in self._tables:
            self._tables[key] = self._table(grid, stride)
        return self._tables[key]

    # A table made while generating must also serve in training, where inference tensors are not allowed.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _table(self, grid: Sequence[int], stride: int) -> Tensor:
        device = self.frequencies.device
        sides = [torch.arange(side, device=device).float() * stride + (stride - 1) / 2 for side in grid]
        axes = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)
        angles = (axes[:, :, None] * self.frequencies).flatten(1)
        table = torch.cat([angles.sin(), angles.cos()], dim=1)
        return F.pad(table, (0, self.embed_dim - table.shape[1]))

    def _apply(self, fn: object, recurse: bool = True) -> "SinCosPosEmbed":
        self._tables.clear()  # the buffer gets a new device or type
        return super()._apply(fn, recurse)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys (QK-norm), which keeps logits bounded in bf16.

    Queries and keys are layer-normalised per head. One learned scale per channel, on the queries, is enough, since
    only the product matters.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim: expected a multiple of num_heads, got {embed_dim} and {num_heads}; "
                f"use {embed_dim // num_heads * num_heads or num_heads}"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.query_scale = nn.Parameter(torch.ones(embed_dim))
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B n E"], context: BlockContext | None = None
    ) -> Float[Tensor, "B n E"]:
        """Return attention of every position to all positions, and to ``context`` if there is one."""
        query, key, value = self.project(x)
        if context is not None:
            return self.merge(context.attend(query, key, value))
        return self.merge(attend(query, key, value))

    def project(self, x: Float[Tensor, "B n E"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised queries and keys, and values: ``[B heads n width]`` each."""
        embed_dim = x.shape[-1]
        both, value = self.qkv(x).split((2 * embed_dim, embed_dim), dim=-1)
        value = value.unflatten(-1, (self.num_heads, -1))
        both = both.unflatten(-1, (2, self.num_heads, -1))
        # layer_norm has a fused kernel on every device; rms_norm on CPU does not and takes twice as long.
        query, key = F.layer_norm(both, both.shape[-1:]).to(value.dtype).unbind(2)
        query = query * self.query_scale.to(value.dtype).view(self.num_heads, -1)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def merge(self, mixed: Float[Tensor, "B heads n width"]) -> Float[Tensor, "B n E"]:
        """Return the output of all heads."""
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class AdaLNZeroBlock(nn.Module):
    """Transformer block whose norms and gates are functions of a condition (DiT, arXiv 2212.09748).

    The projection of the condition starts at zero, and the block as the identity. The condition is one vector per
    sample (``[B 1 E]``, a label) or per position (``[B n E]``, a co-registered latent).

    Args:
        embed_dim: E, a multiple of ``num_heads``.
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP over E.
        dropout: in [0, 1).
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.embed_dim = embed_dim
        self.attention = Attention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden),
            nn.GELU(),  # the exact form: several times faster on CPU than the tanh approximation
            nn.Linear(hidden, embed_dim),
            nn.Dropout(dropout),
        )
        self.modulation = nn.Linear(embed_dim, 6 * embed_dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulate(self, condition: Float[Tensor, "B m E"]) -> Float[Tensor, "B m E6"]:
        """Return shift, scale and gate of both halves; without a timestep, they are computed once per sample."""
        return self.modulation(condition)

    def forward(
        self, x: Float[Tensor, "B n E"], condition: Float[Tensor, "B m E6"] | BlockContext
    ) -> Float[Tensor, "B n E"]:
        """Attend, then mix channels; ``condition`` is the output of ``modulate``, or holds it and a context."""
        context = condition if isinstance(condition, BlockContext) else None
        modulation = condition.modulation if isinstance(condition, BlockContext) else condition
        shift, scale, gate, *rest = modulation.to(x.dtype).chunk(6, dim=-1)
        attended = self.attention(normalise(x, shift, scale), context)
        return self._mix(torch.addcmul(x, gate, attended.to(x.dtype)), rest)

    # A batch has one bucket per length of its contexts, each ``[b S E]`` with its own b and S. All are passed in one
    # call: sharded weights are gathered once per call, and all processes must gather equally often.

    def each(
        self,
        streams: Sequence[Float[Tensor, "_ _ E"]],
        modulations: Sequence[Float[Tensor, "_ 1 E6"]],
    ) -> list[Tensor]:
        """Return ``forward`` of each bucket."""
        return [self.forward(x, modulation) for x, modulation in zip(streams, modulations, strict=True)]

    def read(
        self,
        streams: Sequence[Float[Tensor, "_ _ E"]],
        modulations: Sequence[Float[Tensor, "_ 1 E6"]],
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return keys and values of the context of each bucket, and that context after this block.

        Keys and values are ``[b heads S width]``.
        """
        return [self._read(x, modulation) for x, modulation in zip(streams, modulations, strict=True)]

    def keys(
        self,
        streams: Sequence[Float[Tensor, "_ _ E"]],
        modulations: Sequence[Float[Tensor, "_ 1 E6"]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Return only the keys and values of ``read``, for contexts that no later block needs."""
        return [self._keys(x, modulation) for x, modulation in zip(streams, modulations, strict=True)]

    def _read(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate, *rest = modulation.to(x.dtype).chunk(6, dim=-1)
        query, key, value = self.attention.project(normalise(x, shift, scale))
        attended = self.attention.merge(attend(query, key, value))
        return key, value, self._mix(torch.addcmul(x, gate, attended.to(x.dtype)), rest)

    def _keys(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, *_ = modulation.to(x.dtype).chunk(6, dim=-1)
        _, key, value = self.attention.project(normalise(x, shift, scale))
        return key, value

    def _mix(self, x: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        shift, scale, gate = modulation
        return torch.addcmul(x, gate, self.mlp(normalise(x, shift, scale)).to(x.dtype))


def normalise(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm over the last axis, then ``(1 + scale) · x + shift``."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1.0 + scale)
