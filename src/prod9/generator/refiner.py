"""Refiner: adds the detail of the sources to a volume that was decoded from tokens.

Tokens limit the quality of a translation: the decoded target is never better than the autoencoder's reconstruction,
while the sources show the same anatomy at full resolution. From both, the refiner computes a residual, which is zero
before training.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prod9.autoencoder.native.conv import convolve
from prod9.autoencoder.native.norm import group_norm
from prod9.autoencoder.native.recompute import call
from prod9.autoencoder.native.voxel_folding import fold_voxels
from prod9.autoencoder.padding import pad_to_multiple
from prod9.host_copies import on_host, positions
from prod9.types import Label, Volume, VolumeOut

Sources = Float[Tensor, "B K H W D"]
Present = Bool[Tensor, "B K"]
Facts = Float[Tensor, "B Q"]
"""The task as 0s and 1s: for each class, that it is the target, that it was decoded, and which sources are given."""

_LOG_ERROR = (-6.0, -2.5, 0.0)
"""Least, first and greatest logarithm of an expected error, of intensities in [0, 1]."""


class Refined(NamedTuple):
    """The output of a refiner, ``[B 1 H W D]`` each and 0 outside of the head.

    volume: the refined target, not clipped. error: its expected absolute error.
    """

    volume: VolumeOut
    error: VolumeOut


class Modulation(nn.Module):
    """Scales and shifts channels by facts; the identity before training."""

    def __init__(self, *, num_facts: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_facts, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Volume, facts: Facts) -> Volume:
        """Return ``x`` with each channel scaled and shifted."""
        scale, shift = self.affine(facts)
        return torch.addcmul(shift[:, :, None, None, None], x, scale[:, :, None, None, None])

    def affine(self, facts: Facts) -> tuple[Tensor, Tensor]:
        """Return the factor and the summand of each channel, ``[B C]``."""
        scale, shift = self.linear(facts).chunk(2, dim=1)
        return 1 + scale, shift


class RefinerBlock(nn.Module):
    """Convolution, normalisation of each channel and SiLU, twice, modulated in between.

    The look of a tissue in the target depends on the class of the target and on the sources, so every block is
    modulated by them.
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

    Most of a translation is a curved map from the intensities of the sources at a voxel to that of the target. The
    perceptron learns it in seconds and at full resolution, on the voxels of the head only. The U-Net adds to its hidden
    values what the intensities of one voxel do not show, above all where a lesion is. The readout also gets the
    intensities, so that training starts from a linear regression. All weights of the readout, and the modulation of
    hidden values, depend on the facts.

    A second readout of the same values predicts the error of the first. It is trained on the residuals of the first
    (Kendall and Gal 2017, heteroscedastic regression) and gives no gradient to the rest, so that the refined volume is
    the same with and without it.

    Args:
        num_classes: modalities K that can be source or target.
        num_channels: width at each resolution of the U-Net, from fine to coarse.
        num_res_blocks: blocks per resolution in the encoder, and as many in the decoder.
        space_to_depth: side of the blocks of voxels that the U-Net takes as one.
        detail_channels: width of the perceptron.
        use_checkpointing: recompute activations in the backward pass.
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
        self.error_readout = nn.Linear(facts, detail + num_classes + 2)
        for readout in (self.readout, self.error_readout):
            nn.init.zeros_(readout.weight)
            nn.init.zeros_(readout.bias)
        nn.init.constant_(self.error_readout.bias[-1:], _LOG_ERROR[1])

    def forward(
        self,
        decoded: Float[Tensor, "B 1 H W D"],
        sources: Sources,
        present: Present,
        target_label: Label,
        head: Bool[Tensor, "B H W D"] | None = None,
        head_voxels: Label | None = None,
    ) -> Refined:
        """Return the refined target and its expected error.

        Args:
            decoded: the output of the decoder in [0, 1]; all 0 where there is none, and then only the sources count.
            sources: channel k holds the source of class k, in [0, 1].
            present: which sources are given; the others do not count.
            target_label: class of the target.
            head: where the result may differ from 0; by default where any source is above 0, or everywhere without
                sources.
            head_voxels: int64 ``[B]``, how many voxels that are. Where the host knows them, it
                need not wait for a GPU to count.
        """
        if sources.shape[1] != self.num_classes:
            raise ValueError(
                f"sources: expected one channel for each of the {self.num_classes} classes, "
                f"got {sources.shape[1]}; fill absent ones with 0 and set `present` to False for them"
            )
        given = torch.where(present[:, :, None, None, None], sources, 0.0)
        facts = self._facts(decoded, present, target_label)
        # Tissues have similar intensities in [0, 1]; a larger scale separates them from the first steps on.
        x = torch.cat([decoded, given], dim=1).sub(0.5).mul(4.0)
        guides = self._guide(pad_to_multiple(x, self.multiple), facts)
        if head is None:
            head = (given > 0).any(1) | ~present.any(1)[:, None, None, None]
        volumes, errors = self._voxels(x, decoded, guides, head, facts, head_voxels)
        return Refined(volumes, errors)

    # Compilers break the graph at every count that depends on the data; little would remain between two breaks.
    @torch.compiler.disable
    def _voxels(
        self,
        x: Tensor,
        decoded: Tensor,
        guides: Tensor,
        head: Tensor,
        facts: Tensor,
        head_voxels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the refined volumes and their expected errors: the perceptron, on the voxels of the head."""
        scales, shifts = self.modulation.affine(facts)
        readouts, error_readouts = self.readout(facts), self.error_readout(facts)
        counts = [None] * len(x) if head_voxels is None else on_host(head_voxels).tolist()
        volumes, errors = [], []
        for b, sample in enumerate(x):
            # The number of voxels decides shapes: without a count this waits for a GPU.
            places = positions(head[b], counts[b])
            rows = sample.flatten(1).index_select(1, places).T
            guide = self._enlarged(guides[b], sample.shape[1:]).index_select(0, places)
            h = F.linear(rows, self.detail.weight.flatten(1), self.detail.bias)
            h = F.silu(torch.addcmul(shifts[b] + guide, h, scales[b]))
            h = F.silu(F.linear(h, self.mix.weight.flatten(1), self.mix.bias))
            h = torch.cat([rows, h], dim=1)
            before = decoded[b].flatten().index_select(0, places)
            volumes.append(_filled(decoded[b], places, before + _read(h, readouts[b])))
            least, _, most = _LOG_ERROR
            error = _read(h.detach(), error_readouts[b]).clamp(least, most).exp()
            errors.append(_filled(decoded[b], places, error))
        return torch.stack(volumes), torch.stack(errors)

    def _facts(self, decoded: Tensor, present: Tensor, target_label: Tensor) -> Tensor:
        has_decoded = decoded.flatten(1).any(1, keepdim=True)
        there = torch.cat([torch.ones_like(has_decoded), has_decoded, present], dim=1)
        target = F.one_hot(target_label, self.num_classes)
        return (target[:, :, None] * there[:, None]).flatten(1).to(self.readout.weight.dtype)

    def _guide(self, x: Tensor, facts: Tensor) -> Tensor:
        """Return the U-Net's output, added to the hidden values of each block of voxels."""
        *skips, h = descend(self, x, facts)
        for blocks in reversed(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="trilinear")
            h = run_blocks(blocks, torch.cat([h, skips.pop()], dim=1), facts, self.use_checkpointing)
        return convolve(self.guide, h)

    def _enlarged(self, guide: Tensor, sides: Sequence[int]) -> Tensor:
        """Return ``[C h w d]`` interpolated to rows of voxels, ``[H·W·D C]``, without the padding.

        Three matrix products: torch's own upsampling, above all its backward pass, takes a third of a step.
        """
        rows = guide.permute(1, 2, 3, 0)
        h, w, d = (
            _linear(side, self.space_to_depth, guide)[:wanted]
            for side, wanted in zip(rows.shape[:3], sides, strict=True)
        )
        rows = torch.matmul(d, rows)
        rows = torch.matmul(w, rows.flatten(2))
        return torch.matmul(h, rows.flatten(1)).view(-1, guide.shape[0])


@runtime_checkable
class HasEncoder(Protocol):
    """A U-Net over blocks of voxels: what :func:`descend` reads of it."""

    stem: nn.Conv3d
    down: nn.ModuleList
    pool: nn.ModuleList
    space_to_depth: int
    use_checkpointing: bool


def descend(network: HasEncoder, x: Volume, facts: Tensor) -> list[Tensor]:
    """Return the output of each resolution of the encoder of ``network``, from fine to coarse."""
    folded = fold_voxels(x, network.space_to_depth).contiguous(memory_format=torch.channels_last_3d)
    h, levels = convolve(network.stem, folded), []
    for level, blocks in enumerate(network.down):
        if level > 0:
            h = convolve(network.pool[level - 1], h)  # pyrefly: ignore[bad-argument-type]
        h = run_blocks(blocks, h, facts, network.use_checkpointing)
        levels.append(h)
    return levels


def run_blocks(blocks: Any, h: Volume, facts: Tensor, recompute: bool) -> VolumeOut:
    """Pass ``h`` through the blocks of one resolution.

    Args:
        blocks: of one resolution.
        h: ``[B C H W D]``.
        facts: ``[B Q]``, the task as 0s and 1s.
        recompute: compute activations again in the backward pass, to save memory.
    """
    for block in blocks:
        h = call(block, h, facts, recompute=recompute)
    return h


def _linear(side: int, factor: int, like: Tensor) -> Float[Tensor, "large small"]:
    """Return the matrix of linear interpolation from ``side`` values to ``factor`` times as many."""
    eye = torch.eye(side, device=like.device)[None]
    return F.interpolate(eye, size=side * factor, mode="linear")[0].T.to(like.dtype)


def _read(rows: Float[Tensor, "M C"], readout: Float[Tensor, " C+1"]) -> Float[Tensor, " M"]:
    """Return the weighted sum of each row; the last of ``readout`` is its bias."""
    return rows @ readout[:-1].to(rows.dtype) + readout[-1]


def _filled(like: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Return a tensor of ``like``'s shape and dtype with ``values`` at ``places`` and 0 elsewhere."""
    empty = like.new_zeros(like.numel())
    return empty.index_copy(0, places, values.to(like.dtype)).view_as(like)
