"""ConditionEncoder: from a segmentation, images or a label to features that a generator can add."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prod9.types import Label, Volume


class ConditionEncoder(nn.Module):
    """Strided 3D convolutions from voxels down to a grid that is ``downsampling_factor`` times coarser.

    Every stage also gets the planes averaged to its own grid, so that no convolution can lose a small lesion. The last
    convolution starts at zero: an untrained encoder adds nothing. Its output does not depend on noise or tokens, so it
    runs once per sample.

    Args:
        in_channels: planes, such as one-hot classes of a segmentation, or source images; 0 for none.
        num_labels: number of class labels, 0 for none.
        out_channels: channels of the features.
        downsampling_factor: voxels per cell along each axis; sides must be multiples of it.
        channels: widths of the stages; the last one serves all further stages too.

    Raises:
        ValueError: without planes and without labels.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_labels: int,
        out_channels: int,
        downsampling_factor: int,
        channels: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if in_channels == 0 and num_labels == 0:
            raise ValueError(
                "in_channels, num_labels: expected planes, labels or both, got 0 of each; set one of them"
            )
        self.in_channels = in_channels
        self.num_labels = num_labels
        self.downsampling_factor = downsampling_factor
        self.strides = _prime_factors(downsampling_factor) if in_channels else []
        widths = [channels[min(i, len(channels) - 1)] for i in range(len(self.strides))]
        inputs = [0, *widths]
        self.stages = nn.ModuleList(
            _stage(width + in_channels, widths[i], stride)
            for i, (width, stride) in enumerate(zip(inputs[:-1], self.strides, strict=True))
        )
        self.label: nn.Embedding | None = None
        if num_labels:
            # The last row stands for "not known".
            self.label = nn.Embedding(num_labels + 1, channels[-1])
        joined = inputs[-1] + in_channels + (channels[-1] if num_labels else 0)
        self.join = nn.Conv3d(joined, channels[-1], 3, padding=1)
        self.out = nn.Conv3d(channels[-1], out_channels, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        planes: Volume | None,
        label: Label | None,
        *,
        grid: Sequence[int],
        dropped: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B E h w d"]:
        """Return features on ``grid``.

        Args:
            planes: ``[B C H W D]`` on the voxel grid; given if and only if the encoder was built for them.
            label: ``[B]`` from 0, likewise.
            grid: ``(h, w, d)`` of the features.
            dropped: True for samples that are encoded as if nothing were known.
        """
        self._check(planes, label, grid)
        parts: list[Tensor] = []
        if planes is not None:
            known = planes if dropped is None else planes.masked_fill(dropped.view(-1, 1, 1, 1, 1), 0.0)
            parts += self._encode_planes(known)
        if self.label is not None and label is not None:
            known = label if dropped is None else label.masked_fill(dropped, self.num_labels)
            embedded = self.label(known)[:, :, None, None, None]
            parts.append(embedded.expand(-1, -1, *grid))
        return self.out(F.silu(self.join(torch.cat(parts, dim=1))))

    def _encode_planes(self, planes: Tensor) -> list[Tensor]:
        """Return the features of the last stage, if there is one, and the planes on its grid."""
        features: list[Tensor] = []
        shrunk = planes
        for stage, stride in zip(self.stages, self.strides, strict=True):
            features = [stage(torch.cat([*features, shrunk], dim=1))]
            shrunk = F.avg_pool3d(shrunk, stride)
        return [*features, shrunk]

    def _check(self, planes: Tensor | None, label: Tensor | None, grid: Sequence[int]) -> None:
        if (planes is None) != (self.in_channels == 0) or (label is None) != (self.num_labels == 0):
            raise ValueError(
                f"condition: expected {self.in_channels or 'no'} planes and {self.num_labels or 'no'} labels, got "
                f"{'no' if planes is None else planes.shape[1]} planes and {'no' if label is None else 'a'} "
                "label; give what the encoder was built for"
            )
        if planes is None:
            return
        wanted = tuple(side * self.downsampling_factor for side in grid)
        if tuple(planes.shape[2:]) != wanted:
            raise ValueError(
                f"planes: expected {wanted} voxels for a grid of {tuple(grid)} and a downsampling factor of "
                f"{self.downsampling_factor}, got {tuple(planes.shape[2:])}; resample them to the generator's grid"
            )


def _stage(inputs: int, width: int, stride: int) -> nn.Sequential:
    kernel = 2 * (stride // 2) + 1
    return nn.Sequential(
        nn.Conv3d(inputs, width, kernel, stride=stride, padding=stride // 2),
        nn.SiLU(),
        nn.Conv3d(width, width, 3, padding=1),
        nn.SiLU(),
    )


def _prime_factors(number: int) -> list[int]:
    """Return the prime factors of ``number``, smallest first; an empty list for 1."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
