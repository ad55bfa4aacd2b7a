"""The condition of a decoder that takes a label and perhaps a source, and its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prod9.autoencoder.checks import require_below
from prod9.conditions import CovariateEmbedding, MaskedCondition
from prod9.generator.folding import fold


@dataclass(frozen=True)
class MaskGiTCondition(MaskedCondition):
    """A batch of conditions.

    label: int64 ``[B]``, the class to generate. source_latent: ``[B Z h w d]``, a co-registered source on
    the grid of the tokens, or None. source_label: int64 ``[B]``, the class of that source, -1 or None where it is
    not known. covariates: float32 ``[B K C]``, see :mod:`prod9.data.covariates`, or None.

    Example:
        >>> import torch
        >>> from prod9.generator.condition import MaskGiTCondition
        >>> condition = MaskGiTCondition(torch.tensor([0, 2]))
        >>> both = condition.cat(condition.unconditional())
        >>> len(both), both.is_dropped.tolist()
        (4, [False, False, True, True])
    """

    label: Tensor
    source_latent: Tensor | None = None
    source_label: Tensor | None = None
    covariates: Tensor | None = None


class MaskGiTConditionGenerator(nn.Module):
    """Embeds a MaskGiTCondition: one vector per sample, or per position where there is a source latent.

    Args:
        embed_dim: width E.
        num_classes: number of labels; one more row stands for "no condition".
        patch_size: that of the decoder.
        latent_channels: channels Z of the source latent; None for a decoder without one.
        covariates: numbers K and C of covariates and of features of each; None for a decoder without them.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        patch_size: int,
        latent_channels: int | None,
        covariates: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.label = nn.Embedding(num_classes + 1, embed_dim)
        nn.init.normal_(self.label.weight, std=0.02)
        self.source: nn.Linear | None = None
        if latent_channels is not None:
            self.source = nn.Linear(patch_size**3 * latent_channels, embed_dim)
            self.source_label = nn.Embedding(num_classes + 1, embed_dim)
            self.no_source = nn.Parameter(torch.zeros(embed_dim))
            nn.init.xavier_uniform_(self.source.weight)
            nn.init.zeros_(self.source.bias)
            nn.init.normal_(self.source_label.weight, std=0.02)
        self.covariates: CovariateEmbedding | None = None
        if covariates is not None:
            self.covariates = CovariateEmbedding(covariates=covariates, embed_dim=embed_dim)

    def forward(self, condition: MaskGiTCondition) -> Float[Tensor, "B m E"]:
        """Return ``[B 1 E]``, or ``[B n E]`` for a decoder with a source latent.

        Raises ValueError where a source latent is missing, or given to a decoder of labels.
        """
        require_below(condition.label, self.num_classes, "labels")
        dropped = condition.is_dropped
        sample = self.label(condition.label.masked_fill(dropped, self.num_classes))[:, None]
        if self.covariates is not None:
            known = condition.covariates
            known = None if known is None else known.masked_fill(dropped[:, None, None], 0.0)
            sample = sample + self.covariates(known, len(condition))[:, None]
        if self.source is None:
            if condition.source_latent is not None:
                raise ValueError(
                    "source_latent: expected None, since this decoder takes labels only, got one; use kind 'decoder'"
                )
            return sample
        if condition.source_latent is None:
            raise ValueError("source_latent: expected on the grid of the tokens, got None; pass it")
        source = condition.source_label
        source = torch.full_like(condition.label, -1) if source is None else source
        require_below(source, self.num_classes, "labels of sources", least=-1)
        source = source.masked_fill(dropped | (source < 0), self.num_classes)
        sample = sample + self.source_label(source)[:, None]
        positions = self.source(fold(condition.source_latent.movedim(1, -1), self.patch_size))
        return sample + torch.where(dropped[:, None, None], self.no_source.to(positions.dtype), positions)
