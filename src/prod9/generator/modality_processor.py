"""From the sources of a translation to the context of a single-stream decoder."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prod9.autoencoder.checks import require_below
from prod9.autoencoder.padding import pad_to_multiple, padded_sides
from prod9.conditions import MaskedCondition
from prod9.generator.folding import fold, positions_grid
from prod9.generator.modules import SinCosPosEmbed

PADDING = -1
"""Label of a source that is not there."""
_SOURCE, _EXAMPLE, _TARGET = range(3)


@dataclass(frozen=True)
class InContextCondition(MaskedCondition):
    """A batch of translations: the class to generate, and the sources.

    target_label: int64 ``[B]``, the class to generate. source_labels: int64 ``[B N]``, the class of each source,
    -1 where there is none (padding; samples of a batch may have different numbers of sources, in any order).
    source_latents: ``[B N Z h w d]`` on the grid of the tokens; values under padding do not count.
    co_registered: bool ``[B N]``, True where a source shows the same head as the target, voxel by voxel; False for
    examples from other patients. None for True everywhere.
    """

    target_label: Tensor
    source_labels: Tensor
    source_latents: Tensor
    co_registered: Tensor | None = None

    @property
    def is_co_registered(self) -> Tensor:
        """``co_registered`` as a bool tensor ``[B N]``."""
        every = torch.ones_like(self.source_labels, dtype=torch.bool)
        return every if self.co_registered is None else self.co_registered

    def _matched(self, other: Any) -> "InContextCondition":
        """Return the batch padded to the larger number of sources, with every mask spelled out."""
        padded = self.padded(max(self.source_labels.shape[1], other.source_labels.shape[1]))
        return replace(padded, co_registered=padded.is_co_registered, dropped=padded.is_dropped)

    def padded(self, count: int) -> "InContextCondition":
        """Return the batch with room for ``count`` sources."""
        missing = count - self.source_labels.shape[1]
        if missing <= 0:
            return self
        labels, latents = self.source_labels, self.source_latents
        batch = len(self)
        return replace(
            self,
            source_labels=torch.cat([labels, labels.new_full((batch, missing), PADDING)], 1),
            source_latents=torch.cat([latents, latents.new_zeros(batch, missing, *latents.shape[2:])], 1),
            co_registered=torch.cat(
                [self.is_co_registered, self.is_co_registered.new_ones(batch, missing)], 1
            ),
        )


class ModalityProcessor(nn.Module):
    """Embeds an InContextCondition as a sequence, and as the modulation of the blocks.

    A source is its label, then its latent folded like the tokens, one element per position. Every element contains
    the embedding of the label, so that the order of sources does not matter. Co-registered sources share the positions
    of the target; examples have positions of their own, a learned linear map of them.

    Args:
        embed_dim: width E.
        num_classes: number of labels.
        patch_size: that of the decoder.
        latent_channels: channels Z of the latents.
        num_bands: that of the decoder.
        aligned: also add, at each target position, the latents of the co-registered sources there, each projected by
            the layer of its class. This costs nothing per step and spares the network from learning to attend to its
            own position.
        stride: positions along each axis that share one element of the context. At 2 the context is an eighth as long,
            and detail comes through ``aligned``.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        patch_size: int,
        latent_channels: int,
        num_bands: int | None = None,
        aligned: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.stride = stride
        folded = patch_size**3 * latent_channels
        self.latent = nn.Linear(folded * stride**3, embed_dim)
        self.positions = SinCosPosEmbed(embed_dim=embed_dim, num_bands=num_bands)
        self.elsewhere = nn.Linear(embed_dim, embed_dim)
        self.label = nn.Embedding(num_classes, embed_dim)
        self.role = nn.Embedding(3, embed_dim)
        # One row more than there are classes: the target of an unconditional sample.
        self.target = nn.Embedding(num_classes + 1, embed_dim)
        self.uncond_token = nn.Parameter(torch.empty(embed_dim))
        for table in (self.label.weight, self.role.weight, self.target.weight, self.uncond_token):
            nn.init.normal_(table, std=0.02)
        self.aligned_weight: nn.Parameter | None = None
        if aligned:
            self.aligned_weight = nn.Parameter(torch.empty(num_classes, folded, embed_dim))
            self.aligned_bias = nn.Embedding(num_classes, embed_dim)
            nn.init.normal_(self.aligned_weight, std=(2.0 / (folded + embed_dim)) ** 0.5)
            nn.init.normal_(self.aligned_bias.weight, std=0.02)

    def forward(self, condition: InContextCondition) -> tuple[Float[Tensor, "B S E"], Bool[Tensor, "B S"]]:
        """Return the context and its key padding mask, True for padding.

        ``[label_1, latent_1, …, label_n, latent_n, target_label]``, padding after it; ``[uncond_token]`` for a
        dropped sample. S is always the length for N sources.
        """
        require_below(condition.target_label, self.num_classes, "labels of targets")
        require_below(condition.source_labels, self.num_classes, "labels of sources", least=PADDING)
        labels, latents, near = _gathered(condition)
        elements = self._elements(labels, latents, near)
        batch, count, per_source, width = elements.shape
        target = self.target(condition.target_label) + self.role.weight[_TARGET]
        last = torch.where(condition.is_dropped[:, None], self.uncond_token, target).to(elements.dtype)
        length = (labels != PADDING).sum(1) * per_source
        context = torch.cat([elements.flatten(1, 2), elements.new_zeros(batch, 1, width)], 1)
        place = length[:, None, None].expand(-1, 1, width)
        context = context.scatter(1, place, last[:, None])
        steps = torch.arange(count * per_source + 1, device=length.device)
        return context, steps > length[:, None]

    def modulator(self, condition: InContextCondition) -> Float[Tensor, "B 1 E"]:
        """Return the vector that modulates every block: the embedding of the target's class, or of no class."""
        wanted = condition.target_label.masked_fill(condition.is_dropped, self.num_classes)
        return self.target(wanted)[:, None]

    def aligned(self, condition: InContextCondition) -> Float[Tensor, "B n E"] | None:
        """Return the projected co-registered sources at each position of the target; None without ``aligned``."""
        if self.aligned_weight is None:
            return None
        labels, latents, near = _gathered(condition)
        used = (labels != PADDING) & near
        known = labels.clamp_min(0)
        held = _fold_sources(latents, self.patch_size)
        # Not a product with 0: values under padding may be infinite.
        held = torch.where(used[..., None, None], held, 0.0)
        values = torch.einsum("bnpc,bnce->bpe", held, self.aligned_weight[known])
        there = torch.where(used[..., None], self.aligned_bias(known), 0.0).sum(1)
        return values + there[:, None].to(values.dtype)

    def _elements(self, labels: Tensor, latents: Tensor, near: Tensor) -> Tensor:
        """Return the sources ``[B N n+1 E]``: the label, then the latent's positions."""
        side = self.patch_size * self.stride
        table = self.positions(positions_grid(padded_sides(latents.shape[3:], side), side), self.stride)
        role = self.role.weight[_EXAMPLE].lerp(self.role.weight[_SOURCE], near[..., None].to(table.dtype))
        label = (self.label(labels.clamp_min(0)) + role)[:, :, None]
        # Both are computed for every batch: a weight without a gradient would hang distributed training.
        positions = torch.where(near[..., None, None], table, self.elsewhere(table).to(table.dtype))
        held = self.latent(_fold_sources(latents, side))
        return torch.cat([label, held + label + positions], 2)


def _gathered(condition: InContextCondition) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, latents and ``co_registered`` with padding last; dropped samples have padding only."""
    labels = condition.source_labels.masked_fill(condition.is_dropped[:, None], PADDING)
    order = (labels == PADDING).long().argsort(dim=1, stable=True)
    near = condition.is_co_registered.gather(1, order)
    rows = torch.arange(len(labels), device=labels.device)[:, None]
    return labels.gather(1, order), condition.source_latents[rows, order], near


def _fold_sources(latents: Tensor, patch_size: int) -> Tensor:
    """Return ``[B N n p³Z]`` of latents ``[B N Z h w d]``, filled up with 0 to whole patches."""
    batch, count = latents.shape[:2]
    folded = fold(pad_to_multiple(latents.flatten(0, 1), patch_size).movedim(1, -1), patch_size)
    return folded.unflatten(0, (batch, count))
