"""Faster replacements of layers of MONAI's diffusion U-Net with the same parameters, keys and results."""

from typing import Any

import torch.nn.functional as F
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn

from prod9.autoencoder.native.conv import convolve
from prod9.autoencoder.native.norm import group_norm


class NativeUNetConvolution(Convolution):
    """A convolution by the fastest kernels for its shape; small float32 ones gain most."""

    conv: Any

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``[B C h w d]``."""
        return convolve(self.conv, input)


class NativeUNetResBlock(DiffusionUNetResnetBlock):
    """A residual block with norm and SiLU as one operator."""

    norm1: Any
    norm2: Any

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return ``[B C2 h2 w2 d2]``: sides doubled, halved or kept; ``emb [B E]`` is added to the channels."""
        h = group_norm(x, self.norm1, silu=True)
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = self.conv1(h) + self.time_emb_proj(F.silu(emb))[:, :, None, None, None]
        h = self.conv2(group_norm(h, self.norm2, silu=True, reuse=True))
        return self.skip_connection(x) + h


def use_native_unet(module: nn.Module) -> None:
    """Replace, in place, the slow layers of a diffusion U-Net by their native counterparts."""
    for layer in module.modules():
        if type(layer) is DiffusionUNetResnetBlock:
            layer.__class__ = NativeUNetResBlock
        elif type(layer) is Convolution and len(layer) == 1 and isinstance(layer.conv, nn.Conv3d):
            layer.__class__ = NativeUNetConvolution
        elif isinstance(layer, SABlock):
            # MONAI refuses this flag without CUDA at construction only; the operator runs everywhere.
            layer.use_flash_attention = True
