"""The patch discriminator of stage 1: judges overlapping patches, not whole volumes."""

from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor

from prod9.types import Volume

_KERNEL = 4


class Discriminator(PatchDiscriminator):
    """MONAI's PatchDiscriminator in 3D, from ``channels`` doubling with each of ``num_layers_d`` layers.

    ``norm`` is ``group`` (8 groups, or as many as divide the width), ``instance``, ``batch`` or ``none``;
    batch statistics leak between real and reconstructed volumes when both are judged in one batch.
    """

    def __init__(self, *, channels: int, num_layers_d: int, in_channels: int, norm: str) -> None:
        norms = {
            "group": ("group", {"num_groups": next(n for n in (8, 4, 2, 1) if channels % n == 0)}),
            "instance": "instance",
            "batch": "batch",
            "none": None,
        }
        if norm not in norms:
            raise ValueError(f"norm must be one of {', '.join(norms)}, got {norm!r}.")
        # MONAI passes norm=None on to its blocks, which then have none; only its annotation forbids it.
        choice: str | tuple = norms[norm]  # pyright: ignore[reportAssignmentType]
        super().__init__(
            spatial_dims=3, channels=channels, in_channels=in_channels, num_layers_d=num_layers_d, norm=choice
        )
        self.minimum_side = _minimum_side(num_layers_d)

    def forward(self, x: Volume) -> list[Tensor]:
        """Return the features of every layer; the last entry is the logits ``[B 1 h w d]``, a value a patch."""
        if min(x.shape[2:]) < self.minimum_side:
            raise ValueError(
                f"volume sides must be at least {self.minimum_side} for {self.num_layers_d} layers, "
                f"got {tuple(x.shape[2:])}; use larger crops or fewer layers (num_layers_d)."
            )
        return super().forward(x)


def _minimum_side(num_layers_d: int) -> int:
    """Return the smallest side that leaves one logit and two voxels a side under every normalisation."""
    strides = [2] * num_layers_d + [1, 1]  # first layer, the hidden ones, logits
    side = 1
    for stride in reversed(strides):
        side = max((side - 1) * stride + _KERNEL - 2, 2)
    return side
