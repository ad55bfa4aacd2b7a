"""Activations of a detail flow: see :mod:`prod9.planning.estimates` for the rules.

A block of the U-Net keeps what a block of the refiner keeps. At full resolution each convolution keeps its input, its
modulation and its SiLU theirs, and two values of that width are kept where the U-Net's output is added. The store holds
one byte per voxel of each soft volume, and one of each scan with less noise.
"""

from math import prod

from prod9.config.schema import DetailSection
from prod9.planning.footprint import Footprint, Widths
from prod9.planning.refiner import Block


def detail_footprint(config: DetailSection, widths: Widths, *below: object) -> Footprint:
    """Return what a step of ``config`` keeps. below: the autoencoder, whose volumes alone count."""
    del below
    model, data, half = config.model, config.data, widths.half
    folded, inputs, channels = model.space_to_depth**3, 2 + model.num_sources, model.num_channels
    shares = [0.125**level for level in range(len(channels))]
    down = [Block(width, width, share) for width, share in zip(channels, shares, strict=True)]
    blocks = [block for block in (*down, *down[:-1]) for _ in range(model.num_res_blocks)]
    kept = sum(block.kept_bytes(half) for block in blocks)
    if model.use_checkpointing:
        largest = max(block.kept_bytes(half) for block in blocks)
        kept = sum(half * block.share * block.inputs for block in blocks) + largest
    kept += half * (inputs * folded + channels[0])
    detail = model.detail_channels
    kept += folded * (4 * 2 * inputs + detail * (4 * 4 + model.detail_convs * (half + 4 * 2)))
    voxels = data.batch_size * prod(data.crop_size or data.grid)
    return Footprint(
        latent_grid=(0, 0, 0),
        kept_bytes=kept * voxels / folded,
        passing_bytes=4 * 2 * detail * voxels,
        store_bytes_per_volume=(1 + config.copies) * prod(data.grid),
    )
