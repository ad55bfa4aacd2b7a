"""TransformerDecoder: the network that predicts hidden tokens from visible ones and a condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.generator.condition import MaskGiTCondition, MaskGiTConditionGenerator
from prod9.generator.heads import Groups, TokenLogits, TokenVocabulary
from prod9.generator.modules import AdaLNZeroBlock, SinCosPosEmbed, normalise
from prod9.generator.token_io import embed_tokens, predict_tokens
from prod9.types import TokenGrid, TokenMask


@runtime_checkable
class MaskedDecoder(Protocol):
    """What samplers and trainers need of a decoder; they don't know which one they hold."""

    @property
    def vocabulary(self) -> TokenVocabulary:
        """The tokens and how their distribution factorises."""
        ...

    def prepare(self, condition: Any) -> Any:
        """Return what depends on the condition alone, computed once a sample; slices along the batch."""
        ...

    def __call__(
        self,
        tokens: Tensor,
        mask: Tensor,
        prepared: Any,
        residuals: Sequence[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> TokenLogits:
        """Predict every token, or the flattened positions ``rows [R]`` only."""
        ...


@dataclass(frozen=True)
class Prepared:
    """What a TransformerDecoder keeps of a condition over all steps: the modulation of each block.

    blocks: ``[B m 6E]`` each, final: ``[B m 2E]``; m is 1, or n with a source latent.
    """

    blocks: tuple[Tensor, ...]
    final: Tensor

    def __getitem__(self, samples: slice) -> "Prepared":
        return Prepared(tuple(block[samples] for block in self.blocks), self.final[samples])


class TransformerDecoder(nn.Module):
    """AdaLN-Zero transformer over all token positions, without a timestep.

    levels: FSQ levels. embed_dim: width E. patch_size: p folds p³ tokens into one position, each still
    hidden or visible by itself. groups: factorisation of the vocabulary. dropout: in attention output and
    MLP. num_bands: frequencies an axis of the positions, None for as many as fit. num_classes: labels.
    use_checkpointing: recompute activations in the backward pass. source_latent: also take the latent of a
    co-registered source, position by position.
    """

    def __init__(
        self,
        *,
        levels: Sequence[int],
        embed_dim: int = 512,
        num_blocks: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        patch_size: int = 1,
        groups: Groups = "balanced",
        dropout: float = 0.1,
        num_bands: int | None = None,
        num_classes: int = 4,
        use_checkpointing: bool = False,
        source_latent: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.use_checkpointing = use_checkpointing
        self.vocabulary = TokenVocabulary(levels=levels, groups=groups)
        self.condition = MaskGiTConditionGenerator(
            embed_dim=embed_dim,
            num_classes=num_classes,
            patch_size=patch_size,
            latent_channels=len(levels) if source_latent else None,
        )
        # Per token: its code, zero where hidden, and a flag whose weights are the learned vector of a hidden
        # token, one for each place in the patch.
        self.input = nn.Linear(patch_size**3 * (len(levels) + 1), embed_dim)
        self.positions = SinCosPosEmbed(embed_dim=embed_dim, num_bands=num_bands)
        self.blocks = nn.ModuleList(
            AdaLNZeroBlock(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout)
            for _ in range(num_blocks)
        )
        self.modulation = nn.Linear(embed_dim, 2 * embed_dim)
        self.head = nn.Linear(embed_dim, patch_size**3 * self.vocabulary.num_logits)
        self._initialise()

    @property
    def num_residuals(self) -> int:
        """How many residuals ``forward`` takes: one a pair of blocks."""
        return len(self.blocks) // 2

    @property
    def _adaln_blocks(self) -> list[AdaLNZeroBlock]:
        return cast("list[AdaLNZeroBlock]", list(self.blocks))

    def _initialise(self) -> None:
        """Xavier for linear layers; zero for modulations (identity blocks) and the head (uniform tokens)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zero = [self.head, self.modulation, *(block.modulation for block in self._adaln_blocks)]
        for layer in zero:
            nn.init.zeros_(layer.weight)

    def prepare(self, condition: MaskGiTCondition) -> Prepared:
        """Return the modulations of a condition: all that depends on it, once a sample."""
        embedded = F.silu(self.condition(condition))
        blocks = tuple(block.modulate(embedded) for block in self._adaln_blocks)
        return Prepared(blocks, self.modulation(embedded))

    def forward(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Prepared,
        residuals: Sequence[Tensor] | None = None,
        rows: Int64[Tensor, " R"] | None = None,
    ) -> TokenLogits:
        """Predict tokens.

        tokens: what is visible; entries where ``mask`` is True are not looked at. residuals: one
        ``[B n E]`` a pair of blocks, added after it (control). rows: flattened indices into ``[B h w d]``
        of the tokens wanted; the result is then ``[R K]`` instead of ``[B h w d K]``.
        """
        features = self.features(tokens, mask, prepared, residuals)
        grid = tuple(tokens.shape[1:])
        return self.predict(features, grid, rows)

    def embed(self, tokens: TokenGrid, mask: TokenMask) -> Float[Tensor, "B n E"]:
        """Return the input of the first block: folded codes and mask flags, projected, plus positions."""
        return embed_tokens(
            tokens,
            mask,
            vocabulary=self.vocabulary,
            projection=self.input,
            positions=self.positions,
            patch_size=self.patch_size,
        )

    def features(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Prepared,
        residuals: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B n E"]:
        """Return the normalised hidden state of every position, the input of the head."""
        if residuals is not None and len(residuals) != self.num_residuals:
            raise ValueError(
                f"Expected {self.num_residuals} residuals, one a pair of blocks, got {len(residuals)}; "
                "make the control branch from this decoder."
            )
        x = self.embed(tokens, mask)
        for i, (block, modulation) in enumerate(zip(self.blocks, prepared.blocks, strict=True)):
            if self.use_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, modulation, use_reentrant=False)
            else:
                x = block(x, modulation)
            if residuals is not None and i % 2 and i // 2 < len(residuals):
                x = x + residuals[i // 2].to(x.dtype)
        shift, scale = prepared.final.to(x.dtype).chunk(2, dim=-1)
        return normalise(x, shift, scale)

    def predict(
        self, features: Float[Tensor, "B n E"], grid: tuple[int, ...], rows: Int64[Tensor, " R"] | None = None
    ) -> TokenLogits:
        """Apply the head to all positions, or to the flattened tokens ``rows`` alone."""
        return predict_tokens(
            features,
            head=self.head,
            vocabulary=self.vocabulary,
            patch_size=self.patch_size,
            grid=grid,
            rows=rows,
        )
