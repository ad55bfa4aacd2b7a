"""AbstractTokenDecoder: what every decoder of tokens has, whatever it is told about them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.generator.context import BlockContext
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


class AbstractTokenDecoder(nn.Module, ABC):
    """AdaLN-Zero transformer over all token positions, without a timestep.

    A final class embeds its condition (``prepare``) and says what the blocks see of it (``features``).

    levels: FSQ levels. embed_dim: width E. num_blocks, num_heads, mlp_ratio: of the transformer.
    patch_size: p folds p³ tokens into one position, each still hidden or visible by itself. groups:
    factorisation of the vocabulary. dropout: in attention output and MLP. num_bands: frequencies an axis of
    the positions, None for as many as fit. use_checkpointing: recompute activations in the backward pass.
    condition: embeds the condition; part of the decoder, so that one checkpoint holds both.
    """

    def __init__(
        self,
        *,
        levels: Sequence[int],
        embed_dim: int,
        num_blocks: int,
        num_heads: int,
        mlp_ratio: float,
        patch_size: int,
        groups: Groups,
        dropout: float,
        num_bands: int | None,
        use_checkpointing: bool,
        condition: nn.Module,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.use_checkpointing = use_checkpointing
        self.vocabulary = TokenVocabulary(levels=levels, groups=groups)
        self.condition = condition
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
    def adaln_blocks(self) -> list[AdaLNZeroBlock]:
        """The blocks, as what they are."""
        return cast("list[AdaLNZeroBlock]", list(self.blocks))

    def _initialise(self) -> None:
        """Xavier for linear layers; zero for modulations (identity blocks) and the head (uniform tokens)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zero = [self.head, self.modulation, *(block.modulation for block in self.adaln_blocks)]
        for layer in zero:
            nn.init.zeros_(layer.weight)

    @abstractmethod
    def prepare(self, condition: Any) -> Any:
        """Return all that depends on the condition alone, once a sample.

        Its ``blocks`` holds what each block is called with beside the hidden state.
        """

    @abstractmethod
    def features(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Any,
        residuals: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B n E"]:
        """Return the normalised hidden state of every position, the input of the head."""

    def forward(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Any,
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

    def check_residuals(self, residuals: Sequence[Tensor] | None) -> None:
        """Raise ValueError unless there is one residual a pair of blocks, or none at all."""
        if residuals is not None and len(residuals) != self.num_residuals:
            raise ValueError(
                f"Expected {self.num_residuals} residuals, one a pair of blocks, got {len(residuals)}; "
                "make the control branch from this decoder."
            )

    def run_blocks(
        self, x: Tensor, given: Sequence[Tensor | BlockContext], residuals: Sequence[Tensor] | None
    ) -> Tensor:
        """Pass ``x [B n E]`` through the blocks, each called with its part of ``given``."""
        self.check_residuals(residuals)
        for i, (block, condition) in enumerate(zip(self.blocks, given, strict=True)):
            if self.use_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, use_reentrant=False)
            else:
                x = block(x, condition)
            if residuals is not None and i % 2 and i // 2 < len(residuals):
                x = x + residuals[i // 2].to(x.dtype)
        return x


def finish(x: Tensor, modulation: Tensor) -> Tensor:
    """Return the last norm of hidden states, modulated by ``[B m 2E]``."""
    shift, scale = modulation.to(x.dtype).chunk(2, dim=-1)
    return normalise(x, shift, scale)
