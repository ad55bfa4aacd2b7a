"""TransformerDecoder: the network that predicts hidden tokens from visible ones and a condition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prod9.generator.condition import MaskGiTCondition, MaskGiTConditionGenerator
from prod9.generator.heads import Groups
from prod9.generator.single_stream import TransformerDecoderSingleStream as TransformerDecoderSingleStream
from prod9.generator.token_decoder import AbstractTokenDecoder, finish
from prod9.generator.token_decoder import MaskedDecoder as MaskedDecoder
from prod9.types import TokenGrid, TokenMask


@dataclass(frozen=True)
class Prepared:
    """What a TransformerDecoder keeps of a condition over all steps: the modulation of each block.

    blocks: ``[B m 6E]`` each, final: ``[B m 2E]``; m is 1, or n with a source latent.
    """

    blocks: tuple[Tensor, ...]
    final: Tensor

    def __getitem__(self, samples: slice) -> "Prepared":
        return Prepared(tuple(block[samples] for block in self.blocks), self.final[samples])


class TransformerDecoder(AbstractTokenDecoder):
    """Decoder whose condition enters as the modulation of its blocks: a label, and a source position by position.

    levels, embed_dim, num_blocks, num_heads, mlp_ratio, patch_size, groups, dropout, num_bands,
    use_checkpointing: see :class:`~prod9.generator.token_decoder.AbstractTokenDecoder`. num_classes: labels.
    source_latent: also take the latent of a co-registered source, position by position.
    """

    condition: MaskGiTConditionGenerator

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
        super().__init__(
            levels=levels,
            embed_dim=embed_dim,
            num_blocks=num_blocks,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            patch_size=patch_size,
            groups=groups,
            dropout=dropout,
            num_bands=num_bands,
            use_checkpointing=use_checkpointing,
            condition=MaskGiTConditionGenerator(
                embed_dim=embed_dim,
                num_classes=num_classes,
                patch_size=patch_size,
                latent_channels=len(levels) if source_latent else None,
            ),
        )

    def prepare(self, condition: MaskGiTCondition) -> Prepared:
        """Return the modulations of a condition: all that depends on it, once a sample."""
        embedded = F.silu(self.condition(condition))
        blocks = tuple(block.modulate(embedded) for block in self.adaln_blocks)
        return Prepared(blocks, self.modulation(embedded))

    def features(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Prepared,
        residuals: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B n E"]:
        """Return the normalised hidden state of every position, the input of the head."""
        x = self.run_blocks(self.embed(tokens, mask), prepared.blocks, residuals)
        return finish(x, prepared.final)
