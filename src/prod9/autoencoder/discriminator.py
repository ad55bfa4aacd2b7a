"""The patch discriminator of stage 1, which classifies overlapping patches as real or reconstructed."""

from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor

from prod9.autoencoder.checks import require_choice
from prod9.types import Volume

_KERNEL = 4


class Discriminator(PatchDiscriminator):
    """MONAI's PatchDiscriminator in 3D.

    Args:
        channels: width of the first layer; each of the ``num_layers_d`` layers doubles it.
        num_layers_d: number of strided layers.
        in_channels: channels of the volumes.
        norm: ``group`` (8 groups, or as many as divide the width), ``instance``, ``batch`` or ``none``. Batch
            statistics leak between real and reconstructed volumes in one batch.
    """

    def __init__(self, *, channels: int, num_layers_d: int, in_channels: int, norm: str) -> None:
        norms = {
            "group": ("group", {"num_groups": next(n for n in (8, 4, 2, 1) if channels % n == 0)}),
            "instance": "instance",
            "batch": "batch",
            "none": None,
        }
        require_choice("norm", norm, norms)
        # MONAI passes norm=None on to its blocks, which then have none; only its annotation forbids it.
        choice: str | tuple = norms[norm]  # pyrefly: ignore[bad-assignment]
        super().__init__(
            spatial_dims=3, channels=channels, in_channels=in_channels, num_layers_d=num_layers_d, norm=choice
        )
        self.minimum_side = _minimum_side(num_layers_d)

    def forward(self, x: Volume) -> list[Tensor]:
        """Return the features of every layer; the last entry is the logits ``[B 1 h w d]``, one per patch."""
        if min(x.shape[2:]) < self.minimum_side:
            raise ValueError(
                f"sides of volumes: expected at least {self.minimum_side} for {self.num_layers_d} layers, "
                f"got {tuple(x.shape[2:])}; use larger crops or fewer layers (num_layers_d)"
            )
        return super().forward(x)


def _minimum_side(num_layers_d: int) -> int:
    """Return the smallest side for which every normalisation gets two voxels per axis and the logits one."""
    strides = [2] * num_layers_d + [1, 1]  # first layer, hidden layers, logits
    side = 1
    for stride in reversed(strides):
        side = max((side - 1) * stride + _KERNEL - 2, 2)
    return side
