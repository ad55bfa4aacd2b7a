"""Fast stand-ins for MONAI's MAISI layers: same parameters, same keys, same numbers.

MONAI's MaisiGroupNorm3D loops over the groups in Python and its residual block ends in a forced
contiguous copy. `use_native_ops` gives such layers another class, so weights, state-dict keys, deep
copies and pickles stay what they were; both autoencoder families use it.
"""

import torch.nn.functional as F
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiGroupNorm3D, MaisiResBlock
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn

from prod9.types import Volume


class NativeGroupNorm3D(MaisiGroupNorm3D):
    """Group normalisation by one native operator; statistics are accumulated in float32."""

    def forward(self, input: Volume) -> Volume:
        """Normalise over each group's channels and voxels; the result has the input's dtype."""
        out = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return out.half() if self.norm_float16 else out


class NativeResBlock(MaisiResBlock):
    """Norm, SiLU, convolution, twice, plus the shortcut; keeps the memory format of its input."""

    def forward(self, x: Volume) -> Tensor:
        """Return a volume of ``out_channels`` channels and unchanged sides."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


_NATIVE: dict[type[nn.Module], type[nn.Module]] = {
    MaisiGroupNorm3D: NativeGroupNorm3D,
    MaisiResBlock: NativeResBlock,
}


def use_native_ops(module: nn.Module) -> None:
    """Swap, in place, the slow layers inside ``module`` for their native counterparts."""
    for layer in module.modules():
        native = _NATIVE.get(type(layer))
        if native is not None:
            layer.__class__ = native
        elif isinstance(layer, SABlock):
            # MONAI refuses this flag without CUDA at construction only; the operator runs everywhere.
            layer.use_flash_attention = True
