"""What training a refiner needs: see :mod:`prod9.training.resources` for the formulas.

- activations: each of a block's two convolutions keeps its input before and after the norm and after the
  activation, the modulation its input, once a voxel of the folded volume and of each coarser resolution; at full
  resolution the intensities and, before and after the activation, the detail are kept.
- store: one byte a voxel of each translation. Volumes are read every step, so they are kept where ``data.cache``
  says.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from prod9.training.config_schema import RefinerConfig, RefinerModelConfig
from prod9.training.resources import Device, Resources, checkpoint_bytes, half_bytes, peak_bytes


@dataclass(frozen=True)
class _Block:
    """From ``inputs`` to ``outputs`` channels; ``share``: its voxels over those of the folded volume."""

    inputs: int
    outputs: int
    share: float

    def parameters(self, context_dim: int) -> int:
        i, o = self.inputs, self.outputs
        shortcut = 0 if i == o else (i + 1) * o
        return 2 * i + (27 * i + 1) * o + 2 * (context_dim + 1) * o + 2 * o + (27 * o + 1) * o + shortcut

    def kept_bytes(self, half: int) -> float:
        return self.share * ((8 + half) * self.inputs + (8 + half + 4) * self.outputs)


def estimate_refiner(config: RefinerConfig, *, device: Device = "cuda") -> Resources:
    """Estimate what training ``config`` needs."""
    model, data = config.model, config.data
    folded, dim = model.space_to_depth**3, 4 * model.num_channels[0]
    blocks = _blocks(model)
    first = model.num_channels[0]
    parameters = (2 * model.num_classes + 2) * dim
    parameters += (27 * (1 + model.num_classes) * folded + 1) * first
    parameters += sum(block.parameters(dim) for block in blocks)
    parameters += sum((27 * fine + 1) * coarse for fine, coarse in pairwise(model.num_channels))
    detail = model.detail_channels
    parameters += 2 * first + (27 * first + 1) * detail
    parameters += (27 * (1 + model.num_classes) + 1) * detail + (dim + 1) * (detail + 1)
    half = half_bytes(config, device)
    kept = sum(block.kept_bytes(half) for block in blocks)
    if model.use_checkpointing:
        kept = sum(half * block.share * block.inputs for block in blocks) + max(
            b.kept_bytes(half) for b in blocks
        )
    kept += (8 + half) * first + half * (1 + model.num_classes) * folded
    kept += folded * (half * (1 + model.num_classes) + 2 * half * detail)
    ema = config.training.ema is not None
    return Resources(
        grid=data.grid,
        latent_grid=(0, 0, 0),
        tokens=0,
        positions=0,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, kept * data.batch_size * prod(data.grid) / folded, ema),
        checkpoint_bytes=checkpoint_bytes(parameters, ema),
        store_bytes_per_volume=config.translations.per_target * prod(data.grid),
    )


def _blocks(model: RefinerModelConfig) -> list[_Block]:
    widths, blocks = model.num_channels, []
    shares = [0.125**level for level in range(len(widths))]
    for width, share in zip(widths, shares, strict=True):
        blocks += [_Block(width, width, share)] * model.num_res_blocks
    for (fine, coarse), share in zip(pairwise(widths), shares, strict=False):
        blocks += [
            _Block(fine + coarse, fine, share),
            *[_Block(fine, fine, share)] * (model.num_res_blocks - 1),
        ]
    return blocks
