"""Whole-volume results at bounded memory: layer by layer over slabs, with halos and global statistics.

Windows change the statistics of group normalisation, and so the output. Here every layer runs over slabs of the
first axis, each read with the neighbouring planes that the layer needs, and the statistics of a normalisation are
merged from those of all slabs before any slab is normalised. The result equals that of the whole pass up to rounding.
Between layers an activation is a list of slabs on the CPU, in float32 or bfloat16. Slabs that are no longer needed are
freed while the next activation grows, so that a residual block holds at most two activations, and the computing device
one slab.
"""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    MaisiConvolution,
    MaisiDownsample,
    MaisiGroupNorm3D,
    MaisiResBlock,
    MaisiUpsample,
)
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from torch import Tensor, nn

from prod9.autoencoder.native.conv import convolve, convolve_slab

KEEP_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class _Slabs:
    """An activation ``[B C H W D]`` cut along H.

    starts: first plane of each slab, and H at the end. moments: of each slab, the number of values per channel, and
    mean and variance, float64 ``[B C]``, before rounding to ``dtype``.
    """

    dtype: torch.dtype
    parts: list[Tensor | None] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    moments: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    _workspace: Tensor | None = None

    def append(self, slab: Tensor) -> None:
        """Store the next slab ``[B C planes W D]``."""
        values = slab.float().flatten(2)
        guess = values[..., :1]
        centred = values - guess  # sums of squares of large values would cancel
        count, offset = values.shape[2], centred.mean(2)
        square = torch.linalg.vector_norm(centred, dim=2).double().square() / count
        variance = square - offset.double().square()
        self.moments.append((count, (guess[..., 0] + offset).double().cpu(), variance.cpu()))
        self.parts.append(_kept(slab, self.dtype))
        self.starts.append(self.starts[-1] + slab.shape[2])

    def read(self, first: int, last: int, like: Tensor) -> Tensor:
        """Return planes ``first`` to ``last`` (exclusive) on the device of ``like``; planes outside are 0.

        All calls share their memory: the result is valid until the next one.
        """
        B, C, _, W, D = next(part for part in self.parts if part is not None).shape
        shape = (B, C, last - first, W, D)
        if self._workspace is None or self._workspace.numel() < prod(shape):
            self._workspace = like.new_empty(prod(shape))
        planes = self._workspace[: prod(shape)].view(shape)
        planes[:, :, : max(-first, 0)] = 0
        planes[:, :, self.starts[-1] - first :] = 0
        for part, start, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            low, high = max(first, start), min(last, end)
            if low < high:
                assert part is not None  # freed only when no later layer or slab reads it
                planes[:, :, low - first : high - first] = part[:, :, low - start : high - start]
        return planes

    def free_before(self, plane: int) -> None:
        """Drop the slabs that end at or before ``plane``."""
        for i, end in enumerate(self.starts[1:]):
            if end <= plane:
                self.parts[i] = None

    def whole(self, like: Tensor) -> Tensor:
        """Return the activation in one piece, on the device of ``like``."""
        return self.read(0, self.starts[-1], like)

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Return (scale, shift) float32 ``[B C 1 1 1]`` that ``norm`` applies, from all slabs."""
        counts = torch.tensor([count for count, _, _ in self.moments], dtype=torch.float64)[:, None, None]
        mean = torch.stack([mean for _, mean, _ in self.moments])
        variance = torch.stack([variance for _, _, variance in self.moments])
        counts, mean, variance = (
            value.expand_as(mean).unflatten(2, (norm.num_groups, -1)).movedim(0, -1)
            for value in (counts, mean, variance)
        )
        total = counts.sum((2, 3), keepdim=True)
        centre = (counts * mean).sum((2, 3), keepdim=True) / total
        spread = (counts * (variance + (mean - centre) ** 2)).sum((2, 3), keepdim=True) / total
        rstd = (spread + norm.eps).rsqrt()
        per_group = mean.shape[2]
        centre, rstd = (value[:, :, 0, 0].repeat_interleave(per_group, 1) for value in (centre, rstd))
        scale = norm.weight.detach().double().cpu() * rstd
        shift = norm.bias.detach().double().cpu() - centre * scale
        return scale.float()[..., None, None, None], shift.float()[..., None, None, None]


def _kept(slab: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy on the CPU in memory that returns to the system when it is freed.

    The allocator would keep freed blocks, whose number differs between layers, and the process would grow far beyond
    what it uses.
    """
    buffer = mmap.mmap(-1, slab.numel() * dtype.itemsize)
    kept = torch.frombuffer(buffer, dtype=dtype).view(slab.shape)
    return kept.copy_(slab)


class ExactRunner:
    """Runs the blocks of an encoder or a decoder over slabs instead of the whole volume.

    num_slabs: number of slabs of the first axis; at most one per plane. keep_dtype: ``float32``, or ``bfloat16`` for
    half the memory and rounding errors of 0.4% per layer. max_attention_tokens: attention always runs over the whole
    volume; it is refused for more positions than this.
    """

    def __init__(self, *, num_slabs: int, keep_dtype: str, max_attention_tokens: int) -> None:
        self.num_slabs = num_slabs
        self.dtype = KEEP_DTYPES[keep_dtype]
        self.max_attention_tokens = max_attention_tokens

    @torch.no_grad()
    def __call__(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Return the output of ``blocks`` for ``x`` ``[B C H W D]``, on the device of their weights."""
        blocks = list(blocks)
        weight = next(p for block in blocks for p in block.parameters())
        slabs = self._cut(x)
        affine: tuple[Tensor, Tensor] | None = None
        for block in blocks:
            if isinstance(block, MaisiGroupNorm3D):
                affine = slabs.affine(block)
                continue
            slabs = self._block(block, slabs, affine, weight)
            affine = None
        whole = slabs.whole(weight)
        return whole if affine is None else _normalise(whole, affine, silu=False)

    def _cut(self, x: Tensor) -> _Slabs:
        slabs = _Slabs(self.dtype)
        for slab in x.split(-(-x.shape[2] // self.num_slabs), 2):
            slabs.append(slab)
        return slabs

    def _block(
        self, block: nn.Module, x: _Slabs, affine: tuple[Tensor, Tensor] | None, like: Tensor
    ) -> _Slabs:
        if isinstance(block, MaisiResBlock):
            return self._residual(block, x, like)
        if isinstance(block, SpatialAttentionBlock):
            return self._attend(block, x, like)
        out = _Slabs(self.dtype)
        ranges = list(zip(x.starts, x.starts[1:], strict=False))
        if isinstance(block, MaisiUpsample):
            # The output has twice as many planes: without new cuts, slabs would grow with the resolution.
            end, step = x.starts[-1], max(1, -(-x.starts[-1] // self.num_slabs))
            ranges = [(first, min(first + step, end)) for first in range(0, end, step)]
        for first, last in ranges:
            if isinstance(block, MaisiUpsample):
                slab = _upsampled(block, x, first, last, like)
            elif isinstance(block, MaisiDownsample):
                slab = _downsampled(block, x, first, last, like)
            elif isinstance(block, MaisiConvolution):
                conv: Any = block.conv.conv
                slab = _convolved(conv, x, first, last, affine, like, silu=False)
            else:
                raise ValueError(
                    f"strategy: expected layers that can run in slabs, got {type(block).__name__}; use whole"
                )
            if slab.shape[2]:
                out.append(slab)
            del slab
            x.free_before(last - 1)  # the next slab still reads the last plane of this one
        return out

    def _residual(self, block: Any, x: _Slabs, like: Tensor) -> _Slabs:
        affine, identity = x.affine(block.norm1), isinstance(block.nin_shortcut, nn.Identity)
        hidden, shortcut = _Slabs(self.dtype), x if identity else _Slabs(self.dtype)
        for first, last in zip(x.starts, x.starts[1:], strict=False):
            hidden.append(_convolved(block.conv1.conv.conv, x, first, last, affine, like, silu=True))
            if not identity:
                shortcut.append(block.nin_shortcut(x.read(first, last, like)))
                x.free_before(last - 1)
        if not identity:
            x.free_before(x.starts[-1])
        affine, out = hidden.affine(block.norm2), _Slabs(self.dtype)
        for first, last in zip(hidden.starts, hidden.starts[1:], strict=False):
            slab = _convolved(block.conv2.conv.conv, hidden, first, last, affine, like, silu=True)
            out.append(slab.add_(shortcut.read(first, last, slab)))
            shortcut.free_before(last)
            hidden.free_before(last - 1)
        return out

    def _attend(self, block: nn.Module, x: _Slabs, like: Tensor) -> _Slabs:
        whole = x.whole(like)
        tokens = whole[0, 0].numel()
        if tokens > self.max_attention_tokens:
            raise ValueError(
                f"max_attention_tokens: expected at least the {tokens} positions of this volume, got "
                f"{self.max_attention_tokens}; raise it, or use the sliding_window strategy"
            )
        return self._cut(block(whole))


def _normalise(x: Tensor, affine: tuple[Tensor, Tensor], *, silu: bool) -> Tensor:
    """Normalise ``x`` in place and return it."""
    scale, shift = (value.to(x.device, x.dtype) for value in affine)
    torch.addcmul(shift, x, scale, out=x)
    return F.silu(x, inplace=True) if silu else x


def _convolved(
    conv: nn.Conv3d,
    x: _Slabs,
    first: int,
    last: int,
    affine: tuple[Tensor, Tensor] | None,
    like: Tensor,
    *,
    silu: bool,
) -> Tensor:
    halo, end = conv.kernel_size[0] // 2, x.starts[-1]
    planes = x.read(first - halo, last + halo, like)
    if affine is not None:
        # Padding comes after the norm: planes outside of the volume stay 0.
        inside = slice(max(halo - first, 0), planes.shape[2] - max(last + halo - end, 0))
        _normalise(planes[:, :, inside], affine, silu=silu)
    return convolve_slab(conv, planes)


def _upsampled(block: Any, x: _Slabs, first: int, last: int, like: Tensor) -> Tensor:
    """Return the output planes ``2·first`` to ``2·last``."""
    low, high = max(first - 1, 0), min(last + 1, x.starts[-1])
    planes = x.read(low, high, like)
    if block.use_convtranspose:
        out = block.conv.conv(planes)
        return out[:, :, 2 * (first - low) : 2 * (last - low)]
    # Planes next to a cut lack one neighbour of the interpolation and are left out.
    fine = F.interpolate(planes, scale_factor=2.0, mode="trilinear")
    start, stop, end = 2 * first - 1, 2 * last + 1, 2 * x.starts[-1]
    inside = fine[:, :, max(start, 0) - 2 * low : min(stop, end) - 2 * low]
    before, after = max(-start, 0), max(stop - end, 0)
    if before or after:
        inside = F.pad(inside, (0, 0, 0, 0, before, after))
    return convolve_slab(block.conv.conv.conv, inside)


def _downsampled(block: Any, x: _Slabs, first: int, last: int, like: Tensor) -> Tensor:
    """Return the output planes, perhaps none, whose first input plane lies in ``first`` to ``last``."""
    start, stop = 2 * ((first + 1) // 2), 2 * ((last + 1) // 2)
    conv = block.conv.conv.conv
    if start == stop:
        return like.new_empty(1, conv.out_channels, 0, 1, 1)
    return convolve(conv, F.pad(x.read(start, stop + 1, like), (0, 1, 0, 1, 0, 0)))
