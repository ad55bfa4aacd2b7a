"""Faster replacements of MONAI's MAISI layers with the same parameters, state-dict keys and results.

MONAI's MaisiGroupNorm3D loops over the groups in Python, its residual block ends with a forced contiguous
copy, and its split convolution fails on many sizes. `use_native_ops` changes the class of such layers, so that weights,
state-dict keys, deep copies and pickles stay the same.
"""

from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    MaisiConvolution,
    MaisiGroupNorm3D,
    MaisiResBlock,
    MaisiUpsample,
)
from monai.networks.blocks.selfattention import SABlock
from torch import nn

from prod9.autoencoder.native.conv import convolve, convolve_in_slabs
from prod9.autoencoder.native.layout import needs_grad
from prod9.autoencoder.native.norm import group_norm
from prod9.types import Volume, VolumeOut


class NativeGroupNorm3D(MaisiGroupNorm3D):
    """Group normalisation by one native operator; statistics are accumulated in float32."""

    def forward(self, input: Volume) -> Volume:
        """Normalise over each group's channels and voxels; the result has the input's dtype."""
        out = group_norm(input, self, silu=False)
        return out.half() if self.norm_float16 else out

    def silu(self, x: Volume, *, reuse: bool = False) -> Volume:
        """Return SiLU of the normalised volume; ``reuse`` allows the result to overwrite ``x``."""
        return F.silu(self(x)) if self.norm_float16 else group_norm(x, self, silu=True, reuse=reuse)


class NativeConvolution(MaisiConvolution):
    """One convolution, in ``num_splits`` slabs along ``dim_split``; any number and any size."""

    conv: Any

    def forward(self, x: Volume) -> VolumeOut:
        """Return the convolution; the number of slabs does not change it."""
        if self.conv.is_transposed:
            return super().forward(x)
        if self.num_splits > 1:
            return convolve_in_slabs(self.conv.conv, x, self.num_splits, self.dim_split)
        return convolve(self.conv.conv, x)


class NativeResBlock(MaisiResBlock):
    """Norm, SiLU and convolution, twice, plus the shortcut; keeps the memory format of its input."""

    norm1: Any
    norm2: Any

    def forward(self, x: Volume) -> VolumeOut:
        """Return a volume of ``out_channels`` channels and unchanged sides."""
        h = self.conv1(self.norm1.silu(x))
        h = self.conv2(self.norm2.silu(h, reuse=True))
        shortcut = self.nin_shortcut(x)
        if h.dtype != shortcut.dtype or needs_grad(h, shortcut):
            return shortcut + h
        return h.add_(shortcut)


class NativeUpsample(MaisiUpsample):
    """Trilinear doubling and a convolution, or a transposed convolution; keeps the memory format."""

    def forward(self, x: Volume) -> VolumeOut:
        """Return a volume with sides twice as long."""
        return self.conv(
            x if self.use_convtranspose else F.interpolate(x, scale_factor=2.0, mode="trilinear")
        )


_NATIVE: dict[type[nn.Module], type[nn.Module]] = {
    MaisiGroupNorm3D: NativeGroupNorm3D,
    MaisiConvolution: NativeConvolution,
    MaisiResBlock: NativeResBlock,
    MaisiUpsample: NativeUpsample,
}


def _bfloat16_pays(device_type: str) -> bool:
    if device_type != "cpu":
        return True
    cpu = torch.cpu.get_capabilities()
    if cpu.get("architecture") != "x86_64":
        return True
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and "AMD" in str(cpu.get("cpu_name"))))


_remembered = cache(_bfloat16_pays)


# Compilers cannot trace the queries of the processor, so they take the result as a constant.
@torch.compiler.assume_constant_result
@wraps(_bfloat16_pays)
def bfloat16_pays(device_type: str) -> bool:
    """Return whether convolutions in bfloat16 are faster than in float32 on this type of device here.

    On x86 this needs tile units (AMX) or AMD's AVX512-BF16; on other x86 CPUs oneDNN takes up to twice as long in
    bfloat16, and float32 is both faster and more exact.
    """
    return _remembered(device_type)


def use_native_ops(module: nn.Module) -> None:
    """Replace, in place, the slow layers inside ``module`` by their native counterparts."""
    for layer in module.modules():
        native = _NATIVE.get(type(layer))
        if native is not None:
            layer.__class__ = native
        elif isinstance(layer, SABlock):
            # MONAI refuses this flag without CUDA at construction only; the operator runs everywhere.
            layer.use_flash_attention = True
