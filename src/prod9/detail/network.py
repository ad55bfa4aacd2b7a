"""DetailNetwork: how the detail of a soft volume goes on from what the flow has drawn so far."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prod9.autoencoder.native.conv import convolve
from prod9.autoencoder.native.voxel_folding import unfold_voxels
from prod9.autoencoder.padding import crop, pad_to_multiple
from prod9.detail.condition import DetailCondition
from prod9.generator.refiner import Modulation, RefinerBlock, descend, run_blocks
from prod9.types import Time, Volume, VolumeOut

_FREQUENCIES = 4
"""Waves of the time, of 1/2 to 4 turns from t = 0 to 1; what is read changes slowly with it."""
_NOISE_UNIT = 0.03
"""A usual level of noise, which the network reads as 1."""


class DetailNetwork(nn.Module):
    """A U-Net over blocks of voxels, whose output guides convolutions at full resolution.

    The U-Net finds tissues and borders; the full resolution decides single voxels. All of it is modulated by what it is
    told: the time, the level of noise that is wanted, the class, and which sources are given. The answer is 0 before
    training. It has no unit: :class:`~prod9.detail.flow.DetailFlow` makes a velocity of it.

    Args:
        num_classes: modalities that can be sharpened.
        num_sources: modalities that can be a source: ``num_classes`` for translations, 0 without sources.
        num_channels: width at each resolution of the U-Net, from fine to coarse.
        num_res_blocks: blocks per resolution in the encoder, and as many in the decoder.
        space_to_depth: side of the blocks of voxels that the U-Net takes as one.
        detail_channels: width at full resolution.
        detail_convs: convolutions at full resolution.
        embed_dim: width of what it is told.
        use_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        *,
        num_classes: int = 4,
        num_sources: int = 0,
        num_channels: Sequence[int] = (32, 64),
        num_res_blocks: int = 1,
        space_to_depth: int = 2,
        detail_channels: int = 8,
        detail_convs: int = 2,
        embed_dim: int = 64,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_sources = num_sources
        self.space_to_depth = space_to_depth
        self.use_checkpointing = use_checkpointing
        widths, detail, facts = tuple(num_channels), detail_channels, embed_dim
        self.multiple = space_to_depth * 2 ** (len(widths) - 1)

        def blocks(first: int, width: int) -> nn.ModuleList:
            sides = [(first, width), *[(width, width)] * (num_res_blocks - 1)]
            return nn.ModuleList(
                RefinerBlock(in_channels=i, out_channels=o, num_facts=facts) for i, o in sides
            )

        told = num_classes + num_sources + 1 + 2 * _FREQUENCIES + 2
        self.embedding = nn.Sequential(nn.Linear(told, facts), nn.SiLU(), nn.Linear(facts, facts), nn.SiLU())
        inputs = 2 + num_sources
        self.light = nn.Conv3d(inputs, detail, 1)
        self.light_modulation = Modulation(num_facts=facts, channels=detail)
        self.stem = nn.Conv3d(inputs * space_to_depth**3, widths[0], 1)
        self.down = nn.ModuleList(blocks(w, w) for w in widths)
        self.pool = nn.ModuleList(
            nn.Conv3d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.narrow = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(blocks(fine, fine) for fine in widths[:-1])
        self.guide = nn.Conv3d(widths[0], detail * space_to_depth**3, 1)
        self.mix = nn.ModuleList(nn.Conv3d(detail, detail, 3, padding=1) for _ in range(detail_convs))
        self.mix_modulation = nn.ModuleList(
            Modulation(num_facts=facts, channels=detail) for _ in range(detail_convs)
        )
        self.readout = nn.Conv3d(detail, 1, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # pyrefly: ignore[bad-argument-type]

    def forward(
        self, drawn: Float[Tensor, "B 1 H W D"], time: Time, condition: DetailCondition
    ) -> Float[Tensor, "B 1 H W D"]:
        """Return the answer at ``time`` in [0, 1], which is 0 outside of the head.

        drawn: what the flow has added to the soft volume by then, in units of what is usual at that time.
        """
        # Tissues have similar intensities in [0, 1]; a larger scale separates them from the first steps on.
        given = torch.cat([condition.soft, *self._sources(condition)], dim=1).sub(0.5).mul(4.0)
        facts = self.embedding(self._told(time, condition))
        x = pad_to_multiple(torch.cat([drawn, given], dim=1), self.multiple)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        light = F.silu(self.light_modulation(convolve(self.light, x), facts))
        h = F.silu(light + unfold_voxels(self._guide(x, facts), self.space_to_depth))
        for conv, modulation in zip(self.mix, self.mix_modulation, strict=True):
            h = F.silu(modulation(convolve(conv, h), facts))  # pyrefly: ignore[bad-argument-type]
        answer = crop(convolve(self.readout, h), drawn.shape[2:])
        return torch.where(condition.head, answer, 0.0)

    def _told(self, time: Time, condition: DetailCondition) -> Float[Tensor, "B Q"]:
        turns = 2.0 ** torch.arange(-1, _FREQUENCIES - 1, device=time.device)
        angles = 2 * math.pi * turns * time[:, None]
        noise = condition.noise[:, None] / _NOISE_UNIT
        parts = [
            F.one_hot(condition.label, self.num_classes),
            *([] if condition.present is None else [condition.present]),
            time[:, None],
            angles.sin(),
            angles.cos(),
            noise,
            # Low levels lie close to each other, and differ most.
            (noise + 0.1).log(),
        ]
        return torch.cat(parts, dim=1).to(self.readout.weight.dtype)

    def _sources(self, condition: DetailCondition) -> list[Tensor]:
        """Return the sources as a list of one tensor, or an empty list where the network takes none."""
        sources, present = condition.sources, condition.present
        found = 0 if sources is None else sources.shape[1]
        if found != self.num_sources:
            raise ValueError(
                f"sources: expected one channel for each of {self.num_sources} classes, got {found}; fill absent ones "
                "with 0 and set `present` to False for them"
            )
        if sources is None or present is None:
            return []
        return [torch.where(present[:, :, None, None, None], sources, 0.0)]

    def _guide(self, x: Volume, facts: Tensor) -> VolumeOut:
        """Return the U-Net's output, one value per channel and voxel of each block."""
        *skips, h = descend(self, x, facts)
        for narrow, blocks in zip(reversed(self.narrow), reversed(self.up), strict=True):
            # Added, not joined: the convolutions of the finest blocks are most of the cost.
            coarse = convolve(narrow, h)  # pyrefly: ignore[bad-argument-type]
            h = F.interpolate(coarse, scale_factor=2.0, mode="trilinear")
            h = run_blocks(blocks, h + skips.pop(), facts, self.use_checkpointing)
        return convolve(self.guide, h)
