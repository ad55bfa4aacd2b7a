"""Activations of the refiner: see :mod:`prod9.planning.estimates` for the rules.

A block's convolutions keep their inputs, its norms, its modulation and its SiLUs theirs, once for each of the
U-Net's voxels. At full resolution the intensities are kept twice and the perceptron's hidden values five times, in
float32, inside the head only. A crop may be full of brain; of a whole volume a head takes half at most. Volumes are
read in every step, so they are cached as ``data.cache`` demands; the store holds one byte per voxel of each
translation.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from prod9.config.schema import RefinerConfig, RefinerModelConfig
from prod9.planning.footprint import Footprint, Widths

HEAD = 0.5
"""The most of a whole volume that a head takes: 2 litres of 144 × 192 × 144 mm."""


@dataclass(frozen=True)
class Block:
    """From ``inputs`` to ``outputs`` channels; ``share``: its voxels over those of the folded volume."""

    inputs: int
    outputs: int
    share: float

    def kept_bytes(self, half: int) -> float:
        """Return what it keeps, per voxel of the folded volume; half: bytes of a value in matrix products."""
        # The convolutions' inputs, the norms' inputs and, for the first, the modulated and activated values.
        return self.share * (half * (self.inputs + self.outputs) + (8 + 4 + half) * self.outputs)


def refiner_footprint(config: RefinerConfig, widths: Widths) -> Footprint:
    """Return what a step of ``config`` keeps."""
    model, data, half = config.model, config.data, widths.half
    folded, inputs, blocks = model.space_to_depth**3, 1 + model.num_classes, _blocks(model)
    kept = sum(block.kept_bytes(half) for block in blocks)
    if model.use_checkpointing:
        largest = max(block.kept_bytes(half) for block in blocks)
        kept = sum(half * block.share * block.inputs for block in blocks) + largest
    kept += half * (inputs * folded + model.num_channels[0])
    inside = 1.0 if data.crop_size else HEAD
    kept += inside * folded * (half * 2 * inputs + 4 * 5 * model.detail_channels)
    voxels = data.batch_size * prod(data.crop_size or data.grid)
    return Footprint(
        latent_grid=(0, 0, 0),
        kept_bytes=kept * voxels / folded,
        passing_bytes=inside * 4 * 2 * model.detail_channels * voxels,
        store_bytes_per_volume=config.translations.per_target * prod(data.grid),
    )


def _blocks(model: RefinerModelConfig) -> list[Block]:
    widths, more = model.num_channels, model.num_res_blocks - 1
    shares = [0.125**level for level in range(len(widths))]
    down = [Block(width, width, share) for width, share in zip(widths, shares, strict=True)]
    blocks = [block for block in down for _ in range(model.num_res_blocks)]
    for (fine, coarse), share in zip(pairwise(widths), shares, strict=False):
        blocks += [Block(fine + coarse, fine, share), *[Block(fine, fine, share)] * more]
    return blocks
