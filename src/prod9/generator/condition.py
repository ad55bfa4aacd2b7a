"""What a label- or source-conditioned decoder is told, and its embedding."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prod9.generator.folding import fold


@dataclass(frozen=True)
class MaskGiTCondition:
    """A batch of conditions.

    label: int64 ``[B]``, the class to generate. source_latent: ``[B Z h w d]``, a co-registered source on
    the grid of the tokens, or None. source_label: int64 ``[B]``, the class of that source, -1 or None if not
    known.
    dropped: bool ``[B]``, True where the sample is generated without any condition; default: none is.
    """

    label: Tensor
    source_latent: Tensor | None = None
    source_label: Tensor | None = None
    dropped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.label.device

    @property
    def is_dropped(self) -> Tensor:
        """``dropped`` as a bool tensor ``[B]``."""
        return torch.zeros_like(self.label, dtype=torch.bool) if self.dropped is None else self.dropped

    def drop(self, where: Tensor) -> "MaskGiTCondition":
        """Return the batch with the samples of bool ``where [B]`` made unconditional."""
        return replace(self, dropped=self.is_dropped | where)

    def unconditional(self) -> "MaskGiTCondition":
        """Return the batch with every condition dropped."""
        return self.drop(torch.ones_like(self.label, dtype=torch.bool))

    def cat(self, other: "MaskGiTCondition") -> "MaskGiTCondition":
        """Return one batch with the samples of ``other`` after these."""
        return MaskGiTCondition(
            label=torch.cat([self.label, other.label]),
            source_latent=_cat(self.source_latent, other.source_latent, "source_latent"),
            source_label=_cat(self.source_label, other.source_label, "source_label"),
            dropped=torch.cat([self.is_dropped, other.is_dropped]),
        )

    def to(self, device: torch.device | str) -> "MaskGiTCondition":
        """Return the batch on ``device``."""
        given = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **given)


def _cat(one: Tensor | None, other: Tensor | None, name: str) -> Tensor | None:
    if one is None and other is None:
        return None
    if one is None or other is None:
        raise ValueError(f"Expected {name} in both conditions or in neither, got it in one; give it to both.")
    return torch.cat([one, other])


class MaskGiTConditionGenerator(nn.Module):
    """Embeds a MaskGiTCondition: one vector a sample, and one a position where there is a source latent.

    num_classes: labels; one more row stands for "no condition". latent_channels: Z of the source latent, or
    None for a decoder that takes none. patch_size: the decoder's.
    """

    def __init__(
        self, *, embed_dim: int, num_classes: int, patch_size: int, latent_channels: int | None
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

    def forward(self, condition: MaskGiTCondition) -> Float[Tensor, "B m E"]:
        """Return ``[B 1 E]``, or ``[B n E]`` for a decoder with a source latent."""
        self._check_labels(condition.label)
        dropped = condition.is_dropped
        sample = self.label(condition.label.masked_fill(dropped, self.num_classes))[:, None]
        if self.source is None:
            if condition.source_latent is not None:
                raise ValueError(
                    "Got a source latent, but this decoder takes labels only; use kind 'decoder'."
                )
            return sample
        if condition.source_latent is None:
            raise ValueError("Expected a source latent of the tokens' grid, got None; pass source_latent.")
        told = (
            torch.full_like(condition.label, -1) if condition.source_label is None else condition.source_label
        )
        told = told.masked_fill(dropped | (told < 0), self.num_classes)
        sample = sample + self.source_label(told)[:, None]
        positions = self.source(fold(condition.source_latent.movedim(1, -1), self.patch_size))
        return sample + torch.where(dropped[:, None, None], self.no_source.to(positions.dtype), positions)

    def _check_labels(self, label: Tensor) -> None:
        # One past the last class is the row of "no condition", so the embedding alone would not complain.
        known = ((label >= 0) & (label < self.num_classes)).all()
        if label.device.type == "cuda":
            torch._assert_async(known)  # waiting for the result here would stall every step
        elif label.device.type == "cpu" and not known:
            raise ValueError(
                f"Expected labels from 0 to {self.num_classes - 1}, got {label.tolist()}; "
                "check the label map, or train with more num_classes."
            )
