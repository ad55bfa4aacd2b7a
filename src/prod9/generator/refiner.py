"""Refiner: puts the detail of the sources back into a volume that came through tokens.

Tokens cap what a translation can reach: the decoded target is never better than the autoencoder's
reconstruction, while its sources hold the same anatomy at full resolution. The refiner reads both and adds a
residual that is zero before training.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.autoencoder.native_conv import convolve
from prod9.autoencoder.native_norm import group_norm
from prod9.autoencoder.padding import crop, pad_to_multiple
from prod9.autoencoder.voxel_folding import fold_voxels
from prod9.types import Label, Volume, VolumeOut

Sources = Float[Tensor, "B K H W D"]
Present = Bool[Tensor, "B K"]
Facts = Float[Tensor, "B Q"]
"""What is asked for, 0 or 1 each: for each target, that it is, that it was decoded, and each source it has."""


class Modulation(nn.Module):
    """Scales and shifts channels by facts; a fresh one changes nothing."""

    def __init__(self, *, num_facts: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_facts, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Volume, facts: Facts) -> Volume:
        """Return ``x`` with each channel scaled and shifted."""
        scale, shift = self.linear(facts)[:, :, None, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class RefinerBlock(nn.Module):
    """Convolution, normalisation of each channel and SiLU, twice, modulated in between.

    What a tissue looks like in the target depends on which target it is and on which sources there are, so
    every block is told.
    """

    def __init__(self, *, in_channels: int, out_channels: int, num_facts: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(out_channels, out_channels)
        self.modulation = Modulation(num_facts=num_facts, channels=out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(out_channels, out_channels)

    def forward(self, x: Volume, facts: Facts) -> VolumeOut:
        """Return a volume of ``out_channels`` channels and unchanged sides."""
        h = group_norm(convolve(self.conv1, x), self.norm1, silu=False)
        h = F.silu(self.modulation(h, facts))
        return group_norm(convolve(self.conv2, h), self.norm2, silu=True)


class Refiner(nn.Module):
    """A perceptron from intensities to an intensity, voxel by voxel, guided by a U-Net over coarse blocks.

    Most of a translation is a curved map from the intensities of the sources at a voxel to that of the target,
    which the perceptron learns in seconds and at full resolution; nothing has to pass through narrow features.
    What the intensities of one voxel don't tell, above all where a lesion is, the U-Net sees and adds to the
    perceptron's hidden values. The intensities themselves are read out too, so that linear regression is where
    it starts from. All weights of the readout, and what modulates hidden values, depend on the facts.

    num_classes: modalities K that can be source or target. num_channels: width of each resolution of the
    U-Net, from fine to coarse. num_res_blocks: a resolution, on each of the two ways. space_to_depth: edge of
    the blocks of voxels that the U-Net sees as one. detail_channels: width of the perceptron.
    use_checkpointing: trade time for memory.
    """

    def __init__(
        self,
        *,
        num_classes: int = 4,
        num_channels: Sequence[int] = (32, 64),
        num_res_blocks: int = 1,
        space_to_depth: int = 4,
        detail_channels: int = 16,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.space_to_depth = space_to_depth
        self.use_checkpointing = use_checkpointing
        widths, detail = tuple(num_channels), detail_channels
        self.multiple = space_to_depth * 2 ** (len(widths) - 1)
        facts = num_classes * (num_classes + 2)

        def blocks(first: int, width: int) -> nn.ModuleList:
            sides = [(first, width), *[(width, width)] * (num_res_blocks - 1)]
            return nn.ModuleList(
                RefinerBlock(in_channels=i, out_channels=o, num_facts=facts) for i, o in sides
            )

        self.stem = nn.Conv3d((1 + num_classes) * space_to_depth**3, widths[0], 1)
        self.down = nn.ModuleList(blocks(w, w) for w in widths)
        self.pool = nn.ModuleList(
            nn.Conv3d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(blocks(fine + coarse, fine) for fine, coarse in pairwise(widths))
        self.guide = nn.Conv3d(widths[0], detail, 1)
        self.detail = nn.Conv3d(1 + num_classes, detail, 1)
        self.modulation = Modulation(num_facts=facts, channels=detail)
        self.mix = nn.Conv3d(detail, detail, 1)
        self.readout = nn.Linear(facts, detail + num_classes + 2)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(
        self, decoded: Float[Tensor, "B 1 H W D"], sources: Sources, present: Present, target_label: Label
    ) -> Float[Tensor, "B 1 H W D"]:
        """Return the refined target, intensities not clipped.

        decoded: the target as the decoder gave it, in [0, 1]; all zero where there is none, and then the
        result comes from the sources alone. sources: channel k holds the source of class k, in [0, 1].
        present: which of them there are; the others are not looked at. target_label: class of the target.
        """
        self._check(sources)
        given = torch.where(present[:, :, None, None, None], sources, 0.0)
        facts = self._facts(decoded, present, target_label)
        x = pad_to_multiple(torch.cat([decoded, given], dim=1), self.multiple)
        # Tissues lie close together in [0, 1]; spread out, they are told apart from the first steps on.
        x = x.sub(0.5).mul(4.0).contiguous(memory_format=torch.channels_last_3d)
        h = F.silu(self.modulation(convolve(self.detail, x), facts) + self._guide(x, facts))
        h = torch.cat([x, F.silu(convolve(self.mix, h))], dim=1)
        weight, bias = self.readout(facts).split([h.shape[1], 1], dim=1)
        residual = torch.einsum("bchwd,bc->bhwd", h, weight)[:, None] + bias[:, :, None, None, None]
        return decoded + crop(residual, decoded.shape[2:]).to(decoded.dtype)

    def _facts(self, decoded: Tensor, present: Tensor, target_label: Tensor) -> Tensor:
        has_decoded = decoded.flatten(1).any(1, keepdim=True)
        there = torch.cat([torch.ones_like(has_decoded), has_decoded, present], dim=1)
        target = F.one_hot(target_label, self.num_classes)
        return (target[:, :, None] * there[:, None]).flatten(1).to(self.readout.weight.dtype)

    def _guide(self, x: Tensor, facts: Tensor) -> Tensor:
        """Return what the U-Net adds to the hidden values of each voxel."""
        folded = fold_voxels(x, self.space_to_depth).contiguous(memory_format=torch.channels_last_3d)
        h, skips = convolve(self.stem, folded), []
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = convolve(self.pool[level - 1], h)  # pyright: ignore[reportArgumentType]
            h = self._run(blocks, h, facts)
            skips.append(h)
        skips.pop()
        for blocks in reversed(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="trilinear")
            h = self._run(blocks, torch.cat([h, skips.pop()], dim=1), facts)
        guide = convolve(self.guide, h)
        return F.interpolate(guide, size=x.shape[2:], mode="trilinear") if self.space_to_depth > 1 else guide

    def _run(self, blocks: Any, h: Tensor, facts: Tensor) -> Tensor:
        for block in blocks:
            h = (
                checkpoint(block, h, facts, use_reentrant=False)
                if self.use_checkpointing
                else block(h, facts)
            )
        return h

    def _check(self, sources: Tensor) -> None:
        if sources.shape[1] != self.num_classes:
            raise ValueError(
                f"sources must have one channel for each of the {self.num_classes} classes, "
                f"got {sources.shape[1]}; leave absent ones 0 and say so in `present`."
            )
