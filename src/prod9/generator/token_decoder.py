"""AbstractTokenDecoder: the transformer that all decoders of tokens share, whatever their condition."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prod9.autoencoder.native.recompute import call
from prod9.generator.context import BlockContext
from prod9.generator.coupling import GroupCoupling
from prod9.generator.folding import fold, folded_slots, positions_grid, unfold
from prod9.generator.heads import Groups, TokenLogits, TokenVocabulary
from prod9.generator.modules import AdaLNZeroBlock, SinCosPosEmbed, normalise
from prod9.types import TokenGrid, TokenMask


@runtime_checkable
class MaskedDecoder(Protocol):
    """The interface of decoders for samplers and trainers."""

    @property
    def vocabulary(self) -> TokenVocabulary:
        """The tokens and how their distribution factorises."""
        ...

    def prepare(self, condition: Any) -> Any:
        """Return what depends on the condition alone, computed once per sample; slices along the batch."""
        ...

    def __call__(
        self,
        tokens: Tensor,
        mask: Tensor,
        prepared: Any,
        residuals: Sequence[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> TokenLogits:
        """Predict every token, or those of ``rows`` only.

        Args:
            tokens: int64 ``[B h w d]``.
            mask: bool ``[B h w d]``, True where a token is not known.
            prepared: what the condition gives, the same for all steps.
            residuals: of a control network, one for each block.
            rows: ``[R]``, the flattened positions to predict; None for all.
        """
        ...


class DecoderOptions(TypedDict):
    """Keywords that a decoder hands on to `AbstractTokenDecoder`, which describes them."""

    levels: Sequence[int]
    embed_dim: NotRequired[int]
    num_blocks: NotRequired[int]
    num_heads: NotRequired[int]
    mlp_ratio: NotRequired[float]
    patch_size: NotRequired[int]
    groups: NotRequired[Groups]
    coupling_channels: NotRequired[int]
    dropout: NotRequired[float]
    num_bands: NotRequired[int | None]
    use_checkpointing: NotRequired[bool]


class AbstractTokenDecoder(nn.Module, ABC):
    """AdaLN-Zero transformer over all token positions, without a timestep.

    A final class embeds its condition (``prepare``) and passes it to the blocks (``features``).

    Args:
        condition: builds what embeds the condition, called with ``embed_dim``, ``patch_size`` and
            ``latent_channels`` (one per level); part of the decoder, so that one checkpoint holds both.
        levels: FSQ levels.
        embed_dim: width E.
        num_blocks: number of transformer blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of the MLP over ``embed_dim``.
        patch_size: p folds p³ tokens into one position; each of them is still hidden or visible by itself.
        groups: factorisation of the vocabulary, see ``partition_levels``.
        coupling_channels: width of the perceptron that couples the groups of a token; 0 leaves them independent.
        dropout: in the output of attention and in the MLP.
        num_bands: frequencies per axis of the positions; None for as many as fit.
        use_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        *,
        condition: Callable[..., nn.Module],
        levels: Sequence[int],
        embed_dim: int = 512,
        num_blocks: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        patch_size: int = 1,
        groups: Groups = "balanced",
        coupling_channels: int = 0,
        dropout: float = 0.1,
        num_bands: int | None = None,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.use_checkpointing = use_checkpointing
        self.vocabulary = TokenVocabulary(levels=levels, groups=groups)
        self.condition = condition(embed_dim=embed_dim, patch_size=patch_size, latent_channels=len(levels))
        # The inputs of a token are its code, 0 where it is hidden, and a flag. The weights of the flag are the learned
        # vector of a hidden token, one for each place in the patch.
        self.input = nn.Linear(patch_size**3 * (len(levels) + 1), embed_dim)
        self.positions = SinCosPosEmbed(embed_dim=embed_dim, num_bands=num_bands)
        self.blocks = nn.ModuleList(
            AdaLNZeroBlock(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout)
            for _ in range(num_blocks)
        )
        self.modulation = nn.Linear(embed_dim, 2 * embed_dim)
        self.head = nn.Linear(embed_dim, patch_size**3 * self.vocabulary.num_logits)
        self.coupling = None
        if coupling_channels and len(self.vocabulary.sizes) > 1:
            self.coupling = GroupCoupling(sizes=self.vocabulary.sizes, channels=coupling_channels)
        self._initialise()

    @property
    def num_residuals(self) -> int:
        """The number of residuals of ``forward``: one per pair of blocks."""
        return len(self.blocks) // 2

    @property
    def adaln_blocks(self) -> list[AdaLNZeroBlock]:
        """The blocks with their type."""
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
        if self.coupling is not None:
            self.coupling.initialise()

    @abstractmethod
    def prepare(self, condition: Any) -> Any:
        """Return all that depends on the condition alone, computed once per sample.

        Its ``blocks`` holds the second argument of each block.
        """

    @abstractmethod
    def features(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Any,
        residuals: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B n E"]:
        """Return the normalised hidden state of every position, the input of the head.

        Args:
            tokens: int64 ``[B h w d]``.
            mask: bool ``[B h w d]``, True where a token is not known.
            prepared: what the condition gives, the same for all steps.
            residuals: of a control network, one for each block.
        """

    def forward(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Any,
        residuals: Sequence[Tensor] | None = None,
        rows: Int64[Tensor, " R"] | None = None,
    ) -> TokenLogits:
        """Predict tokens.

        Args:
            tokens: the visible tokens; entries where ``mask`` is True do not count.
            mask: True where a token is hidden.
            prepared: the output of ``prepare``.
            residuals: of a control network, one ``[B n E]`` per pair of blocks, added after it.
            rows: flattened indices into ``[B h w d]`` of the tokens wanted; the result is then ``[R K]`` instead of
                ``[B h w d K]``.
        """
        features = self.features(tokens, mask, prepared, residuals)
        return self.predict(features, tuple(tokens.shape[1:]), rows)

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
            coupling=self.coupling,
        )

    def check_residuals(self, residuals: Sequence[Tensor] | None) -> None:
        """Raise ValueError unless ``residuals`` is None or holds one per pair of blocks."""
        if residuals is not None and len(residuals) != self.num_residuals:
            raise ValueError(
                f"residuals: expected {self.num_residuals}, one per pair of blocks, got {len(residuals)}; "
                "build the control network from this decoder"
            )

    def run_blocks(
        self, x: Tensor, given: Sequence[Tensor | BlockContext], residuals: Sequence[Tensor] | None
    ) -> Tensor:
        """Pass ``x [B n E]`` through the blocks, each called with its part of ``given``."""
        self.check_residuals(residuals)
        for i, (block, condition) in enumerate(zip(self.blocks, given, strict=True)):
            x = call(block, x, condition, recompute=self.use_checkpointing)
            if residuals is not None and i % 2 and i // 2 < len(residuals):
                x = x + residuals[i // 2].to(x.dtype)
        return x


def finish(x: Tensor, modulation: Tensor) -> Tensor:
    """Return the last norm of hidden states, modulated by ``[B m 2E]``."""
    shift, scale = modulation.to(x.dtype).chunk(2, dim=-1)
    return normalise(x, shift, scale)


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

    Args:
        tokens: ``[B h w d]``; where ``mask`` is True they do not count.
        mask: ``[B h w d]``.
        vocabulary: token → codes of Z levels.
        projection: maps p³ · (Z + 1) features to E.
        positions: their embedding.
        patch_size: p, cells of a patch along each axis.
    """
    grid = positions_grid(tokens.shape[1:], patch_size)
    codes = vocabulary.codes(tokens).masked_fill(mask[..., None], 0.0)
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
    coupling: GroupCoupling | None = None,
) -> TokenLogits:
    """Apply ``head`` to all positions, or to those of ``rows`` alone.

    Args:
        features: ``[B n E]``.
        head: linear, from E to p³ · K.
        vocabulary: of the tokens.
        patch_size: p, cells of a patch along each axis.
        grid: ``(h, w, d)`` of the tokens.
        rows: ``[R]``, flattened tokens; None for all.
        coupling: of the groups of levels; None where they are independent.
    """
    if rows is None:
        return TokenLogits(unfold(head(features), grid, patch_size), vocabulary, coupling)
    flat = features.flatten(0, 1)
    if patch_size == 1:
        return TokenLogits(head(flat.index_select(0, rows)), vocabulary, coupling)
    every = head(flat).unflatten(-1, (patch_size**3, -1)).flatten(0, 1)
    return TokenLogits(every.index_select(0, folded_slots(rows, grid, patch_size)), vocabulary, coupling)
