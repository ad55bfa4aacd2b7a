"""TransformerDecoder: the network that predicts hidden tokens from visible ones and a condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prod9.generator.condition import MaskGiTCondition, MaskGiTConditionGenerator
from prod9.generator.single_stream import TransformerDecoderSingleStream as TransformerDecoderSingleStream
from prod9.generator.token_decoder import AbstractTokenDecoder, DecoderOptions, finish
from prod9.types import TokenGrid, TokenMask


@dataclass(frozen=True)
class Prepared:
    """The modulations that a TransformerDecoder computes once per condition.

    blocks: ``[B m 6E]`` each. final: ``[B m 2E]``. m is 1, or n with a source latent.
    """

    blocks: tuple[Tensor, ...]
    final: Tensor

    def __getitem__(self, samples: slice) -> "Prepared":
        return Prepared(tuple(block[samples] for block in self.blocks), self.final[samples])


class TransformerDecoder(AbstractTokenDecoder):
    """Decoder whose condition modulates its blocks: a label, and perhaps a source, position by position.

    Args:
        num_classes: number of labels.
        source_latent: also take the latent of a co-registered source, position by position.
        covariates: numbers K and C of covariates and of features of each; None for none.
        **options: see :class:`~prod9.generator.token_decoder.AbstractTokenDecoder`.

    Example:
        >>> import torch
        >>> from prod9.generator.condition import MaskGiTCondition
        >>> from prod9.generator.transformer import TransformerDecoder
        >>> decoder = TransformerDecoder(levels=[8, 5], embed_dim=24, num_blocks=2, num_heads=2).eval()
        >>> tokens, prepared = torch.zeros(1, 4, 4, 4).long(), decoder.prepare(MaskGiTCondition(torch.tensor([1])))
        >>> logits = decoder(tokens, torch.ones_like(tokens, dtype=torch.bool), prepared)
        >>> tuple(logits.dense().shape)  # one log-probability for each of 40 tokens
        (1, 40, 4, 4, 4)
    """

    condition: MaskGiTConditionGenerator

    def __init__(
        self,
        *,
        num_classes: int = 4,
        source_latent: bool = False,
        covariates: Sequence[int] | None = None,
        **options: Unpack[DecoderOptions],
    ) -> None:
        def condition(*, latent_channels: int, **sizes: int) -> MaskGiTConditionGenerator:
            channels = latent_channels if source_latent else None
            return MaskGiTConditionGenerator(
                num_classes=num_classes, latent_channels=channels, covariates=covariates, **sizes
            )

        super().__init__(condition=condition, **options)

    def prepare(self, condition: MaskGiTCondition) -> Prepared:
        """Return the modulations of a condition, computed once per sample."""
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
        """Return the normalised hidden state of every position, the input of the head.

        Args:
            tokens: int64 ``[B h w d]``.
            mask: bool ``[B h w d]``, True where a token is not known.
            prepared: what the condition gives, the same for all steps.
            residuals: of a control network, one for each block.
        """
        x = self.run_blocks(self.embed(tokens, mask), prepared.blocks, residuals)
        return finish(x, prepared.final)
