"""ControlNetMaskGiT: steers a frozen masked decoder with a segmentation, a label, or both.

Copies of every second block of the base run beside it on the same tokens, plus the encoded condition, and
hand one residual to each pair of base blocks (ControlNet, arXiv 2302.05543; for masked transformers
arXiv 2410.10780). All ways back into the base start at zero, so the controlled base starts as the base, bit
for bit.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.controlnet.condition import ControlCondition, one_hot_planes, require_below
from prod9.controlnet.condition_encoder import ConditionEncoder
from prod9.generator.folding import fold
from prod9.generator.heads import TokenLogits
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.generator.token_io import embed_tokens, predict_tokens
from prod9.types import Segmentation, TokenGrid, TokenMask

ConditionType = Literal["mask", "label", "both"]


@dataclass(frozen=True)
class EncodedControl:
    """What ``ControlNetMaskGiT.encode`` keeps of a condition over all steps; slices along the batch.

    features: ``[B n E]``. absent: ``[E]``, what stands in every position where nothing is known.
    """

    features: Tensor
    absent: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, samples: slice) -> "EncodedControl":
        return EncodedControl(self.features[samples], self.absent)

    def cat(self, other: "EncodedControl") -> "EncodedControl":
        """Return one batch with the samples of ``other`` after these."""
        return EncodedControl(torch.cat([self.features, other.features]), self.absent)

    def unconditional(self) -> "EncodedControl":
        """Return the batch with nothing known of any sample."""
        return EncodedControl(self.absent.expand_as(self.features), self.absent)


@dataclass(frozen=True)
class ControlOutput:
    """What a step adds to the base.

    residuals: ``[B n E]`` each, one a pair of base blocks. logits: adjustments of the base's logits, of the
    same rows; their ``dense()`` is the ``[B V h w d]`` of the specification.
    """

    residuals: tuple[Tensor, ...]
    logits: TokenLogits


class ControlNetMaskGiT(nn.Module):
    """A control network for one base decoder, started from the base's own weights.

    base: copied from, not held; with ``full`` attention the copies see the target alone. downsampling_factor:
    voxels a token along each axis. num_labels: class labels. condition_type: what ``encode`` takes.
    num_mask_classes: of a segmentation, background included. channels: width of the condition encoder's
    stages.
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
                f"Expected a base of at least two blocks, one residual a pair, got {len(base.blocks)}."
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
        # The outputs below are zero already. A zero here as well would keep the condition out of the first gradients.
        nn.init.kaiming_normal_(self.encoder.out.weight, nonlinearity="linear")
        # Down to tokens and folded, like the tokens: where in a position a lesion is stays in plain sight.
        self.project = nn.Linear(base.patch_size**3 * channels[-1], base.embed_dim)
        self.absent = nn.Parameter(torch.zeros(base.embed_dim))
        copied = [_copy_block(base.blocks[2 * i]) for i in range(base.num_residuals)]
        self.blocks = nn.ModuleList(copied)
        self.residuals = nn.ModuleList(nn.Linear(base.embed_dim, base.embed_dim) for _ in copied)
        # Reads the condition itself too: what a class looks like is learnt from the first step on. Through the copied
        # blocks alone it begins at a moment that chance decides, and a training of minutes can end before.
        self.head = nn.Linear(2 * base.embed_dim, base.patch_size**3 * base.vocabulary.num_logits)
        for layer in (*cast("list[nn.Linear]", list(self.residuals)), self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # The base is frozen and in evaluation mode; what was copied from it is neither.
        self.requires_grad_(True).train()

    def encode(self, condition: ControlCondition) -> EncodedControl:
        """Return what depends on the condition alone, once a sample; sides must fit the token grid."""
        if condition.images is not None:
            raise ValueError(
                f"Expected a condition of {self.condition_type!r}, got images as well; sources of a translation "
                "belong into the condition of the base."
            )
        planes = None if self.condition_type == "label" else self._one_hot(condition)
        label = None if self.condition_type == "mask" else self._checked_label(condition)
        grid = (self.patch_size,) * 3 if planes is None else self._token_grid(planes)
        dropped = condition.is_dropped
        encoded = self.encoder(planes, label, grid=grid, dropped=dropped)
        features = self.project(fold(encoded.movedim(1, -1), self.patch_size))
        features = torch.where(dropped[:, None, None], self.absent.to(features.dtype), features)
        return EncodedControl(features, self.absent)

    def forward(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: Any,
        control: EncodedControl,
        rows: Int64[Tensor, " R"] | None = None,
    ) -> ControlOutput:
        """Return what to add to the base on these tokens.

        prepared: of the base, for the same samples; each copy is modulated as the block it was copied from.
        rows: flattened indices into ``[B h w d]``, those of which the base's logits are wanted.
        """
        x = embed_tokens(
            tokens,
            mask,
            vocabulary=self.vocabulary,
            projection=self.input,
            positions=self.positions,
            patch_size=self.patch_size,
        )
        features = control.features.to(x.dtype).expand_as(x)
        x = x + features
        # What an in-context base adds of co-registered sources at each position.
        aligned = getattr(prepared, "aligned", None)
        if aligned is not None:
            x = x + aligned.to(x.dtype)
        residuals = []
        for i, (block, out) in enumerate(zip(self.blocks, self.residuals, strict=True)):
            told = prepared.blocks[2 * i]
            if self.use_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, told, use_reentrant=False)
            else:
                x = block(x, told)
            residuals.append(out(x))
        adjustments = predict_tokens(
            torch.cat([F.layer_norm(x, x.shape[-1:]), features], dim=-1),
            head=self.head,
            vocabulary=self.vocabulary,
            patch_size=self.patch_size,
            grid=tuple(tokens.shape[1:]),
            rows=rows,
        )
        return ControlOutput(tuple(residuals), adjustments)

    def _token_grid(self, planes: Tensor) -> tuple[int, ...]:
        factor = self.encoder.downsampling_factor
        unit = factor * self.patch_size
        if any(side % unit for side in planes.shape[2:]):
            raise ValueError(
                f"Expected a segmentation whose sides are multiples of {unit}, the voxels of a position of "
                f"the base, got {tuple(planes.shape[2:])}; bring it to the grid of the base."
            )
        return tuple(side // factor for side in planes.shape[2:])

    def _one_hot(self, condition: ControlCondition) -> Segmentation:
        if condition.seg is None:
            raise ValueError(
                f"Expected a segmentation for condition_type {self.condition_type!r}, got None; pass seg."
            )
        return one_hot_planes(condition.seg, self.num_mask_classes)

    def _checked_label(self, condition: ControlCondition) -> Tensor:
        if condition.label is None:
            raise ValueError(
                f"Expected a label for condition_type {self.condition_type!r}, got None; pass label."
            )
        # One past the last label is the row of "not told", so the embedding alone would not complain.
        require_below(condition.label, self.num_labels, "labels")
        return condition.label


def _copy_block(block: nn.Module) -> nn.Module:
    """Return a copy without the projection of the condition: the base's own output of it is reused."""
    copy = deepcopy(block)
    del copy.modulation  # parameters that never get a gradient hang distributed training
    return copy
