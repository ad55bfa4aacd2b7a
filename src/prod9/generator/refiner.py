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
Context = Float[Tensor, "B E"]


class RefinerBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus the shortcut; a context shifts and scales the channels between.

    What a tissue looks like in the target depends on which target it is and on which sources there are, so
    every block is told. The scale starts at 1 and the shift at 0 for every context.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, context_dim: int, norm_num_groups: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(context_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Volume, context: Context) -> VolumeOut:
        """Return a volume of ``out_channels`` channels and unchanged sides."""
        h = convolve(self.conv1, group_norm(x, self.norm1, silu=True))
        scale, shift = self.modulation(context)[:, :, None, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
        h = convolve(self.conv2, group_norm(h, self.norm2, silu=True))
        skip = x if isinstance(self.shortcut, nn.Identity) else convolve(self.shortcut, x)
        return skip + h


class Refiner(nn.Module):
    """Maps decoded target and sources, voxel by voxel, as a U-Net over coarser blocks of them sees fit.

    The U-Net works on folded volumes, since full resolution costs most of the time; the little that needs it
    is one convolution of the intensities themselves, so that no detail has to pass through narrow features.
    Both are added, and a readout that depends on target and sources gives the residual.

    num_classes: modalities K that can be source or target. num_channels: width of each resolution of the
    U-Net, from fine to coarse. num_res_blocks: a resolution, on each of the two ways. norm_num_groups: divides
    every width. space_to_depth: edge n of the blocks that are folded. detail_channels: width at full
    resolution. use_checkpointing: trade time for memory.
    """

    def __init__(
        self,
        *,
        num_classes: int = 4,
        num_channels: Sequence[int] = (32, 64),
        num_res_blocks: int = 1,
        norm_num_groups: int = 8,
        space_to_depth: int = 2,
        detail_channels: int = 16,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.space_to_depth = space_to_depth
        self.use_checkpointing = use_checkpointing
        widths, folded = tuple(num_channels), space_to_depth**3
        self.multiple = space_to_depth * 2 ** (len(widths) - 1)
        dim = 4 * widths[0]
        self.context = nn.Sequential(nn.Linear(2 * num_classes + 1, dim), nn.SiLU())

        def blocks(first: int, width: int) -> nn.ModuleList:
            sides = [(first, width), *[(width, width)] * (num_res_blocks - 1)]
            return nn.ModuleList(
                RefinerBlock(in_channels=i, out_channels=o, context_dim=dim, norm_num_groups=norm_num_groups)
                for i, o in sides
            )

        self.stem = nn.Conv3d((1 + num_classes) * folded, widths[0], 3, padding=1)
        self.down = nn.ModuleList(blocks(w, w) for w in widths)
        self.pool = nn.ModuleList(
            nn.Conv3d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(blocks(fine + coarse, fine) for fine, coarse in pairwise(widths))
        self.norm_out = nn.GroupNorm(norm_num_groups, widths[0])
        self.guide = nn.Conv3d(widths[0], detail_channels, 3, padding=1)
        self.detail = nn.Conv3d(1 + num_classes, detail_channels, 3, padding=1)
        self.readout = nn.Linear(dim, detail_channels + 1)
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
        context = self._context(decoded, present, target_label)
        x = pad_to_multiple(torch.cat([decoded, given], dim=1), self.multiple)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        guide = self._guide(fold_voxels(x, self.space_to_depth), context)
        if self.space_to_depth > 1:
            guide = F.interpolate(guide, scale_factor=float(self.space_to_depth), mode="trilinear")
        hidden = F.silu(convolve(self.detail, x) + guide)
        weight, bias = self.readout(context).split([hidden.shape[1], 1], dim=1)
        residual = torch.einsum("bchwd,bc->bhwd", hidden, weight)[:, None] + bias[:, :, None, None, None]
        return decoded + crop(residual, decoded.shape[2:]).to(decoded.dtype)

    def _context(self, decoded: Tensor, present: Tensor, target_label: Tensor) -> Tensor:
        has_decoded = decoded.flatten(1).any(1, keepdim=True)
        target = F.one_hot(target_label, self.num_classes)
        facts = torch.cat([target, present.to(target.dtype), has_decoded.to(target.dtype)], dim=1)
        return self.context(facts.to(self.stem.weight.dtype))

    def _guide(self, x: Tensor, context: Tensor) -> Tensor:
        h, skips = convolve(self.stem, x.contiguous(memory_format=torch.channels_last_3d)), []
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = convolve(self.pool[level - 1], h)  # pyright: ignore[reportArgumentType]
            h = self._run(blocks, h, context)
            skips.append(h)
        skips.pop()
        for blocks in reversed(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="trilinear")
            h = self._run(blocks, torch.cat([h, skips.pop()], dim=1), context)
        return convolve(self.guide, group_norm(h, self.norm_out, silu=True))

    def _run(self, blocks: Any, h: Tensor, context: Tensor) -> Tensor:
        for block in blocks:
            h = (
                checkpoint(block, h, context, use_reentrant=False)
                if self.use_checkpointing
                else block(h, context)
            )
        return h

    def _check(self, sources: Tensor) -> None:
        if sources.shape[1] != self.num_classes:
            raise ValueError(
                f"sources must have one channel for each of the {self.num_classes} classes, "
                f"got {sources.shape[1]}; leave absent ones 0 and say so in `present`."
            )
