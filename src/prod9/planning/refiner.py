"""What training a refiner needs: see :mod:`prod9.planning.estimates` for the formulas.

- activations: a block's convolutions keep their inputs, its norms, its modulation and its SiLUs theirs, once for
  each of the U-Net's voxels. At full resolution the intensities are kept twice and the perceptron's hidden values
  five times, in float32: of the head alone, so this is the most that a crop full of brain takes.
- store: one byte a voxel of each translation. Volumes are read every step, so they are kept where ``data.cache``
  says.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from prod9.config.schema import RefinerConfig, RefinerModelConfig
from prod9.planning.estimates import Device, Resources, checkpoint_bytes, half_bytes, peak_bytes


@dataclass(frozen=True)
class _Block:
    """From ``inputs`` to ``outputs`` channels; ``share``: its voxels over those of the folded volume."""

    inputs: int
    outputs: int
    share: float

    def parameters(self, num_facts: int) -> int:
        i, o = self.inputs, self.outputs
        return (27 * i + 1) * o + 2 * (num_facts + 1) * o + (27 * o + 1) * o + 4 * o

    def kept_bytes(self, half: int) -> float:
        # A convolution's input, what its norm is given and, of the first, what is modulated and activated.
        return self.share * (half * (self.inputs + self.outputs) + (8 + 4 + half) * self.outputs)


def estimate_refiner(config: RefinerConfig, *, device: Device = "cuda") -> Resources:
    """Estimate what training ``config`` needs."""
    model, data = config.model, config.data
    folded, detail, inputs = model.space_to_depth**3, model.detail_channels, 1 + model.num_classes
    blocks, first, facts = _blocks(model), model.num_channels[0], model.num_classes * (model.num_classes + 2)
    parameters = (inputs * folded + 1) * first + (first + 1) * detail
    parameters += sum(block.parameters(facts) for block in blocks)
    parameters += sum((27 * fine + 1) * coarse for fine, coarse in pairwise(model.num_channels))
    parameters += (inputs + 1) * detail + 2 * (facts + 1) * detail + (detail + 1) * detail
    parameters += 2 * (facts + 1) * (detail + inputs + 1)
    half = half_bytes(config, device)
    kept = sum(block.kept_bytes(half) for block in blocks)
    if model.use_checkpointing:
        kept = sum(half * block.share * block.inputs for block in blocks) + max(
            b.kept_bytes(half) for b in blocks
        )
    kept += half * (inputs * folded + first) + folded * (half * 2 * inputs + 4 * 5 * detail)
    voxels = data.batch_size * prod(data.crop_size or data.grid)
    ema = config.training.ema is not None
    return Resources(
        grid=data.grid,
        latent_grid=(0, 0, 0),
        tokens=0,
        positions=0,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, kept * voxels / folded, ema),
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
