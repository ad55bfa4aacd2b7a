"""ControlNetMaskGiT: steers a frozen masked decoder with a segmentation, a label, or both.

Copies of every second block of the base run in parallel to it, on the same tokens plus the encoded condition, and
give one residual to each pair of base blocks (ControlNet, arXiv 2302.05543; for masked transformers arXiv 2410.10780).
All outputs start at zero, so that the controlled base first equals the base bit for bit.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from prod9.autoencoder.checks import require_below, require_multiples
from prod9.autoencoder.native.recompute import call
from prod9.controlnet.condition import ControlCondition, one_hot_planes
from prod9.controlnet.condition_encoder import ConditionEncoder
from prod9.generator.folding import fold
from prod9.generator.heads import TokenLogits
from prod9.generator.token_decoder import AbstractTokenDecoder, embed_tokens, predict_tokens
from prod9.types import TokenGrid, TokenMask

ConditionType = Literal["mask", "label", "both"]


@dataclass(frozen=True)
class EncodedControl:
    """The output of ``ControlNetMaskGiT.encode``, the same for all steps; slices along the batch.

    features: ``[B n E]``, of positions. tokens: ``[B h w d C]``, of single tokens, 0 without a condition. absent:
    ``[E]``, the features of every position without a condition.
    """

    features: Tensor
    tokens: Tensor
    absent: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, samples: slice) -> "EncodedControl":
        return EncodedControl(self.features[samples], self.tokens[samples], self.absent)

    def cat(self, other: "EncodedControl") -> "EncodedControl":
        """Return one batch with the samples of ``other`` after these."""
        features = torch.cat([self.features, other.features])
        return EncodedControl(features, torch.cat([self.tokens, other.tokens]), self.absent)

    def unconditional(self) -> "EncodedControl":
        """Return the batch with nothing known of any sample."""
        nothing = torch.zeros_like(self.tokens)
        return EncodedControl(self.absent.expand_as(self.features), nothing, self.absent)


@dataclass(frozen=True)
class ControlOutput:
    """What a control network adds to the base at one step.

    residuals: ``[B n E]`` each, one per pair of base blocks. logits: added to the base's logits of the same rows.
    """

    residuals: tuple[Tensor, ...]
    logits: TokenLogits


class ControlNetMaskGiT(nn.Module):
    """A control network for one base decoder, which starts with copies of the base's weights.

    Args:
        base: copied from, but not part of this network. With ``full`` attention the copies see the target only.
        downsampling_factor: voxels per token along each axis.
        num_labels: number of class labels.
        condition_type: what ``encode`` takes.
        num_mask_classes: classes of a segmentation, background included.
        channels: widths of the stages of the condition encoder.

    Raises:
        ValueError: for a base with fewer than two blocks.
    """

    def __init__(
        self,
        *,
        base: AbstractTokenDecoder,
        downsampling_factor: int,
        num_labels: int,
        condition_type: ConditionType = "both",
        num_mask_classes: int = 4,
        channels: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if base.num_residuals < 1:
            raise ValueError(
                f"base: expected at least two blocks, one residual per pair, got {len(base.blocks)}; train a deeper one"
            )
        self.condition_type = condition_type
        self.num_mask_classes = num_mask_classes
        self.num_labels = num_labels
        self.patch_size = base.patch_size
        self.use_checkpointing = base.use_checkpointing
        self.vocabulary = deepcopy(base.vocabulary)
        self.input = deepcopy(base.input)
        self.positions = deepcopy(base.positions)
        self.encoder = ConditionEncoder(
            in_channels=0 if condition_type == "label" else num_mask_classes,
            num_labels=0 if condition_type == "mask" else num_labels,
            out_channels=channels[-1],
            downsampling_factor=downsampling_factor,
            channels=channels,
        )
        # The outputs below are zero already. Zeros here as well would keep the condition out of the first gradients.
        nn.init.kaiming_normal_(self.encoder.out.weight, nonlinearity="linear")
        # Folded like the tokens, so that the place of a lesion within a position is kept.
        self.project = nn.Linear(base.patch_size**3 * channels[-1], base.embed_dim)
        self.absent = nn.Parameter(torch.zeros(base.embed_dim))
        copied = [_copy_block(base.blocks[2 * i]) for i in range(base.num_residuals)]
        self.blocks = nn.ModuleList(copied)
        self.residuals = nn.ModuleList(nn.Linear(base.embed_dim, base.embed_dim) for _ in copied)
        self.head = nn.Linear(base.embed_dim, base.patch_size**3 * base.vocabulary.num_logits)
        for layer in (*cast("list[nn.Linear]", list(self.residuals)), self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # From the condition at a token to its logits, one map for all p³ places of a position: the look of a class is
        # learnt from the first step on. Through the copied blocks alone, learning starts late and at random, so short
        # runs may end first.
        self.look = nn.Linear(channels[-1], base.vocabulary.num_logits, bias=False)
        nn.init.zeros_(self.look.weight)
        # The base is frozen and in evaluation mode; what was copied from it is neither.
        self.requires_grad_(True).train()

    def encode(self, condition: ControlCondition) -> EncodedControl:
        """Return what depends on the condition alone, once per sample.

        Raises ValueError for sides that do not fit the token grid, and for source images.
        """
        if condition.images is not None:
            raise ValueError(
                f"condition: expected {self.condition_type!r} alone, got images too; pass the sources of a translation "
                "in the condition of the base"
            )
        planes = label = None
        if self.condition_type != "label":
            planes = one_hot_planes(self._given(condition.seg, "seg"), self.num_mask_classes)
        if self.condition_type != "mask":
            label = self._given(condition.label, "label")
            require_below(label, self.num_labels, "labels")
        grid, factor = (self.patch_size,) * 3, self.encoder.downsampling_factor
        if planes is not None:
            require_multiples(planes.shape[2:], factor * self.patch_size, "sides of the segmentation")
            grid = tuple(side // factor for side in planes.shape[2:])
        dropped = condition.is_dropped
        encoded = self.encoder(planes, label, grid=grid, dropped=dropped)
        tokens = encoded.movedim(1, -1)
        features = self.project(fold(tokens, self.patch_size))
        features = torch.where(dropped[:, None, None], self.absent.to(features.dtype), features)
        tokens = tokens.masked_fill(dropped.view(-1, 1, 1, 1, 1), 0.0)
        return EncodedControl(features, tokens, self.absent)

    def forward(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Any,
        control: EncodedControl,
        rows: Int64[Tensor, " R"] | None = None,
    ) -> ControlOutput:
        """Return what to add to the base on these tokens.

        Args:
            tokens: see the base.
            mask: see the base.
            prepared: that of the base; each copy gets the modulation of its original.
            control: the encoded condition.
            rows: flattened indices into ``[B h w d]`` of the logits wanted; None for all.
        """
        x = embed_tokens(
            tokens,
            mask,
            vocabulary=self.vocabulary,
            projection=self.input,
            positions=self.positions,
            patch_size=self.patch_size,
        )
        x = x + control.features.to(x.dtype).expand_as(x)
        # An in-context base adds the co-registered sources at each position.
        aligned = getattr(prepared, "aligned", None)
        if aligned is not None:
            x = x + aligned.to(x.dtype)
        residuals = []
        for i, (block, out) in enumerate(zip(self.blocks, self.residuals, strict=True)):
            x = call(block, x, prepared.blocks[2 * i], recompute=self.use_checkpointing)
            residuals.append(out(x))
        adjustments = predict_tokens(
            F.layer_norm(x, x.shape[-1:]),
            head=self.head,
            vocabulary=self.vocabulary,
            patch_size=self.patch_size,
            grid=tuple(tokens.shape[1:]),
            rows=rows,
        )
        return ControlOutput(tuple(residuals), adjustments.plus(self._looks(control, tokens, rows)))

    def _looks(self, control: EncodedControl, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Return what the condition at each token says of it, in the form of the logits wanted."""
        known = control.tokens
        if self.condition_type == "label":  # the same everywhere, so it was encoded for one position
            known = known.repeat(1, *(n // self.patch_size for n in tokens.shape[1:]), 1)
        return self.look(known if rows is None else known.flatten(0, 3).index_select(0, rows))

    def _given(self, value: Tensor | None, name: str) -> Tensor:
        if value is None:
            raise ValueError(
                f"{name}: expected for condition_type {self.condition_type!r}, got None; pass {name}"
            )
        return value


def _copy_block(block: nn.Module) -> nn.Module:
    """Return a copy without the projection of the condition, since the base's modulations are reused."""
    copy = deepcopy(block)
    del copy.modulation  # parameters that never get a gradient hang distributed training
    return copy
