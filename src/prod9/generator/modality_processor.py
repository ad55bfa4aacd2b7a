"""From the sources of a translation to the context that a single-stream decoder reads."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prod9.autoencoder.padding import pad_to_multiple, padded_sides
from prod9.generator.folding import fold, positions_grid
from prod9.generator.modules import SinCosPosEmbed

PADDING = -1
"""Label of a source that is not there."""
_SOURCE, _EXAMPLE, _TARGET = range(3)


@dataclass(frozen=True)
class InContextCondition:
    """A batch of translations: what is wanted, and the volumes it may be made from.

    target_label: int64 ``[B]``, the class to generate. source_labels: int64 ``[B N]``, the class of each source,
    -1 where there is none (padding: any number from 0 to N of sources in any order may be mixed in a batch).
    source_latents: ``[B N Z h w d]`` on the grid of the tokens; what is under padding is never looked at.
    co_registered: bool ``[B N]``, True where a source shows the target's own head, voxel by voxel; False for
    examples from other patients. Default: all are. dropped: bool ``[B]``, True where the sample is generated
    without any condition; default: none is.
    """

    target_label: Tensor
    source_labels: Tensor
    source_latents: Tensor
    co_registered: Tensor | None = None
    dropped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target_label)

    def __getitem__(self, samples: slice) -> "InContextCondition":
        given = {name: value[samples] for name, value in vars(self).items() if value is not None}
        return replace(self, **given)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.target_label.device

    @property
    def is_dropped(self) -> Tensor:
        """``dropped`` as a bool tensor ``[B]``."""
        empty = torch.zeros_like(self.target_label, dtype=torch.bool)
        return empty if self.dropped is None else self.dropped

    @property
    def is_co_registered(self) -> Tensor:
        """``co_registered`` as a bool tensor ``[B N]``."""
        every = torch.ones_like(self.source_labels, dtype=torch.bool)
        return every if self.co_registered is None else self.co_registered

    def drop(self, where: Tensor) -> "InContextCondition":
        """Return the batch with the samples of bool ``where [B]`` made unconditional."""
        return replace(self, dropped=self.is_dropped | where)

    def unconditional(self) -> "InContextCondition":
        """Return the batch with every condition dropped."""
        return self.drop(torch.ones_like(self.target_label, dtype=torch.bool))

    def cat(self, other: "InContextCondition") -> "InContextCondition":
        """Return one batch with the samples of ``other`` after these, padded to the larger number of sources."""
        count = max(self.source_labels.shape[1], other.source_labels.shape[1])
        one, two = self.padded(count), other.padded(count)
        return InContextCondition(
            target_label=torch.cat([one.target_label, two.target_label]),
            source_labels=torch.cat([one.source_labels, two.source_labels]),
            source_latents=torch.cat([one.source_latents, two.source_latents]),
            co_registered=torch.cat([one.is_co_registered, two.is_co_registered]),
            dropped=torch.cat([one.is_dropped, two.is_dropped]),
        )

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

    def to(self, device: torch.device | str) -> "InContextCondition":
        """Return the batch on ``device``."""
        given = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **given)


class ModalityProcessor(nn.Module):
    """Embeds an InContextCondition as a sequence, and as what modulates the blocks.

    A source is its label, then its latent folded like the tokens, one element a position. Every element holds
    the label's embedding, so that sources are told apart wherever they stand in the sequence. Sources that are
    co-registered share the target's positions; examples have positions of their own, a learned linear map of
    them. ``aligned`` adds a second way in: at each target position, the sum of what the co-registered sources
    hold there, each under the projection of its class. It does not depend on the order either, costs nothing
    a step, and spares the network learning to attend to its own position.

    num_classes: labels. latent_channels: Z. patch_size, num_bands: the decoder's. stride: positions along each
    axis that share one element of the context: at 2 it is an eighth as long, and detail comes by ``aligned``.
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
        """Return the context and its key padding mask, True where there is nothing.

        ``[label_1, latent_1, …, label_n, latent_n, target_label]``, padding after it; ``[uncond_token]`` for a
        dropped sample. S is that of N sources, whatever the batch holds.
        """
        self._check(condition)
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
        """Return the vector that modulates every block: the target's class, or none."""
        wanted = condition.target_label.masked_fill(condition.is_dropped, self.num_classes)
        return self.target(wanted)[:, None]

    def aligned(self, condition: InContextCondition) -> Float[Tensor, "B n E"] | None:
        """Return what the co-registered sources hold at each position of the target; None without ``aligned``."""
        if self.aligned_weight is None:
            return None
        labels, latents, near = _gathered(condition)
        used = (labels != PADDING) & near
        known = labels.clamp_min(0)
        held = _fold_sources(latents, self.patch_size)
        # where, not a product with 0: what lies under padding may be anything.
        held = torch.where(used[..., None, None], held, 0.0)
        values = torch.einsum("bnpc,bnce->bpe", held, self.aligned_weight[known])
        there = torch.where(used[..., None], self.aligned_bias(known), 0.0).sum(1)
        return values + there[:, None].to(values.dtype)

    def _elements(self, labels: Tensor, latents: Tensor, near: Tensor) -> Tensor:
        """Return the sources ``[B N n+1 E]``: the label, then the latent's positions."""
        side = self.patch_size * self.stride
        table = self.positions(positions_grid(padded_sides(latents.shape[3:], side), side), self.stride)
        role = self.role.weight[_EXAMPLE].lerp(self.role.weight[_SOURCE], near[..., None].to(table.dtype))
        told = (self.label(labels.clamp_min(0)) + role)[:, :, None]
        # Both are computed for every batch: a weight without a gradient would hang distributed training.
        positions = torch.where(near[..., None, None], table, self.elsewhere(table).to(table.dtype))
        held = self.latent(_fold_sources(latents, side))
        return torch.cat([told, held + told + positions], 2)

    def _check(self, condition: InContextCondition) -> None:
        labels = torch.cat([condition.target_label[:, None], condition.source_labels], 1)
        known = (labels >= PADDING) & (labels < self.num_classes)
        known[:, 0] &= condition.target_label >= 0
        if labels.device.type == "cuda":
            torch._assert_async(known.all())  # waiting for the result here would stall every step
        elif labels.device.type == "cpu" and not known.all():
            raise ValueError(
                f"Expected labels from 0 to {self.num_classes - 1} ({PADDING} for no source), got target "
                f"{labels[:, 0].tolist()} and sources {labels[:, 1:].tolist()}; check the label map, or train with "
                "more num_classes."
            )


def _gathered(condition: InContextCondition) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, latents and ``co_registered`` with the sources of each sample first, none where dropped."""
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
