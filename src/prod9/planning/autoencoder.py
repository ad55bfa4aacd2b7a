"""Activations and work of stage 1 of both families: see :mod:`prod9.planning.estimates` for the rules."""

from dataclasses import dataclass
from itertools import accumulate
from math import prod

from prod9.config.schema import (
    AutoencoderConfig,
    DiscriminatorConfig,
    FSQModelConfig,
    KLModelConfig,
    MaisiVAEConfig,
)
from prod9.planning.footprint import Footprint, Widths, latent_grid, num_passes


@dataclass(frozen=True)
class _Convolution:
    """A convolution with a cubic kernel.

    fraction: its input's share of the voxels of the network's first resolution.
    stride: of the kernel along each axis.
    shares_input: its input is kept anyhow, by the norm at the beginning of its block.
    """

    inputs: int
    outputs: int
    fraction: float
    normalised: bool
    kernel: int = 3
    stride: int = 1
    shares_input: bool = False

    def kept_bytes(self, widths: Widths) -> float:
        """Return the bytes kept for the backward pass for each voxel of the first resolution."""
        if self.shares_input:
            return 0.0
        return (widths.half + self.normalised * widths.norm) * self.inputs * self.fraction

    @property
    def parameters(self) -> int:
        """Weights and biases, those of the norm before it included."""
        return self.kernel**3 * self.inputs * self.outputs + self.outputs + 2 * self.inputs * self.normalised

    @property
    def work(self) -> float:
        """Multiply-adds for each voxel of the first resolution."""
        return self.kernel**3 * self.inputs * self.outputs * self.fraction / self.stride**3


def autoencoder_footprint(config: AutoencoderConfig | MaisiVAEConfig, widths: Widths) -> Footprint:
    """Return what a step of ``config`` keeps."""
    model, data = config.model, config.data
    crop = data.batch_size * prod(data.crop_size or data.grid)
    whole = prod(data.grid) if data.crop_size is None or data.whole_volume_fraction > 0 else 0
    voxels = max(crop, whole)
    blocks, folded = _blocks(model), model.space_to_depth**3
    own = [sum(layer.kept_bytes(widths) for layer in block) for block in blocks]
    inputs = [widths.half * block[0].inputs * block[0].fraction for block in blocks]
    stays = inputs if model.use_checkpointing else own
    # The backward pass of a block begins when those that follow it are gone.
    alive = [before + now for before, now in zip(accumulate([0.0, *stays[:-1]]), own, strict=True)]
    gradients = (
        4 * max((layer.inputs + layer.outputs) * layer.fraction for layer in block) for block in blocks
    )
    adversary = Widths(widths.half, 8)  # whose norms are torch's
    judged = sum(stays) + folded * sum(layer.kept_bytes(adversary) for layer in _adversary(config))
    kept = max(judged, *alive)
    peak = max(kept, *(now + passing for now, passing in zip(alive, gradients, strict=True)))
    return Footprint(
        latent_grid=latent_grid(data.grid, model.downsampling_factor),
        kept_bytes=kept * voxels / folded,
        passing_bytes=(peak - kept) * voxels / folded,
    )


def autoencoder_work(config: AutoencoderConfig | MaisiVAEConfig) -> float:
    """Return the multiply-adds of a training step on crops, forward and backward, adversary included."""
    model, data = config.model, config.data
    # Real and reconstructed volumes pass the adversary about four times.
    network = (
        num_passes(recomputes=model.use_checkpointing)
        * sum(layer.work for layer in _layers(model))
        / model.space_to_depth**3
    )
    adversary = 4 * 2 * sum(layer.work for layer in _adversary(config))
    return data.batch_size * prod(data.crop_size or data.grid) * (network + adversary)


def autoencoder_parameters(model: FSQModelConfig | KLModelConfig) -> int:
    """Return the parameters of an autoencoder without attention."""
    return sum(layer.parameters for layer in _layers(model))


def _layers(model: FSQModelConfig | KLModelConfig) -> list[_Convolution]:
    return [layer for block in _blocks(model) for layer in block]


def _blocks(model: FSQModelConfig | KLModelConfig) -> list[list[_Convolution]]:
    """Return the layers of each block of encoder and decoder."""
    widths, counts, last = model.num_channels, model.num_res_blocks, len(model.num_channels) - 1
    shares = [0.125**i for i in range(len(widths))]
    latent = model.latent_channels if model.kind == "kl" else len(model.levels)
    folded = model.space_to_depth**3
    blocks = [[_Convolution(model.in_channels * folded, widths[0], 1.0, False)]]
    for i, share in enumerate(shares):
        blocks += _resolution(widths[max(i - 1, 0)], widths[i], counts[i], share)
        if i < last:
            blocks.append([_Convolution(widths[i], widths[i], share, False, stride=2)])
    blocks += [
        [_Convolution(widths[last], latent, shares[last], True)],
        # Before the latent for the mean (and for KL the deviation), and one after it.
        *[[_Convolution(latent, latent, shares[last], False, kernel=1)]] * (3 if model.kind == "kl" else 2),
        [_Convolution(latent, widths[last], shares[last], False)],
    ]
    for i in reversed(range(len(widths))):
        blocks += _resolution(widths[min(i + 1, last)], widths[i], counts[i], shares[i])
        if i > 0:
            blocks.append([_Convolution(widths[i], widths[i], shares[i - 1], False)])
    return [*blocks, [_Convolution(widths[0], model.out_channels * folded, 1.0, True)]]


def _resolution(inputs: int, outputs: int, count: int, share: float) -> list[list[_Convolution]]:
    blocks: list[list[_Convolution]] = []
    for _ in range(count):
        block = [_Convolution(inputs, outputs, share, True), _Convolution(outputs, outputs, share, True)]
        if inputs != outputs:
            block.append(_Convolution(inputs, outputs, share, False, kernel=1, shares_input=True))
        blocks.append(block)
        inputs = outputs
    return blocks


def _adversary(config: AutoencoderConfig | MaisiVAEConfig) -> list[_Convolution]:
    """Return the layers of the discriminator, none where the loss has no adversarial term."""
    if config.loss.adversarial.weight == 0:
        return []
    model: DiscriminatorConfig = config.loss.adversarial.discriminator
    widths = [model.channels * 2**i for i in range(model.num_layers_d + 1)]
    layers = [_Convolution(model.in_channels, widths[0], 1.0, False, kernel=4, stride=2)]
    layers += [
        _Convolution(
            widths[i],
            widths[i + 1],
            0.125 ** (i + 1),
            True,
            kernel=4,
            stride=2 if i + 1 < model.num_layers_d else 1,
        )
        for i in range(model.num_layers_d)
    ]
    layers.append(_Convolution(widths[-1], 1, 0.125**model.num_layers_d, True, kernel=4))
    return layers
