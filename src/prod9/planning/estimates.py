"""Estimates, before anything starts, what a run will need: tokens, parameters, peak memory, disk.

Counted from the config alone, without torch. The formulas, with bytes per value b = 4 (float32 on CPU) or
2 (bf16 autocast on CUDA):

- tokens: (H/f)(W/f)(D/f) for a grid of H × W × D voxels, f = space_to_depth · 2^(resolutions − 1).
- parameters: k³ · C_in · C_out + C_out a convolution, C_in · C_out + C_out a linear layer, norms with them.
- state of training: 16 bytes a parameter (weight, gradient and AdamW's two moments in float32), 4 more
  with an average of the weights.
- activations, stage 1: a normalised convolution keeps its input before and after the norm and after the
  activation, 4 + 4 + b bytes a value (norms run in float32 under autocast), a bare one its input, b bytes.
  Training passes are one crop batch or one whole volume, whichever is larger. The discriminator sees real
  and reconstructed volumes, four passes in all, each keeping 4 + 4 + b bytes a value.
- activations, stage 2, a position and block of width E and MLP ratio m: two norms and modulations
  (4 · 4E), queries, keys and values before and after their norm (6bE), attention's output (2bE), two gated
  residuals (4bE) and the MLP's hidden values before and after its activation (2bmE), one byte a value for
  each of the two dropout masks; attention itself keeps no L × L matrix. The head's logits and their softmax
  are float32. The positions of the longest context count as well, without logits. With ``use_checkpointing``
  one block's activations remain, and 4E a block.
- the sum of state and activations is multiplied by 1.25 for workspaces and fragmentation.
- token store: 2 or 4 bytes a token, 1 for its foreground flag and 2 for each of its latent channels; twice with
  mirrored copies.
- checkpoint: 12 bytes a parameter (weight and both moments), 4 more with an average.

Attention levels of an autoencoder and networks of perceptual terms are not counted. Tests compare parameters
and activations with those of real networks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from prod9.config.schema import (
    AutoencoderConfig,
    DiscriminatorConfig,
    FSQModelConfig,
    KLModelConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    RunConfig,
    Stage1Config,
    TransformerConfig,
    TransformerModelConfig,
)
from prod9.planning.flow import flow_cost

GIB = 1024**3
OVERHEAD = 1.25
_STATE_BYTES = 16
_EMA_BYTES = 4

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Resources:
    """What a run needs.

    grid: voxels of a whole volume. latent_grid: tokens along each axis. tokens: of a whole volume.
    positions: of the transformer, 0 for stage 1. parameters: of every trained network.
    memory_bytes: peak of a training step on one device. checkpoint_bytes: one checkpoint file.
    store_bytes_per_volume: in the token store, mirrored copy included, 0 for stage 1.
    """

    grid: tuple[int, int, int]
    latent_grid: tuple[int, int, int]
    tokens: int
    positions: int
    parameters: int
    memory_bytes: int
    checkpoint_bytes: int
    store_bytes_per_volume: int

    @property
    def memory_gib(self) -> float:
        """Peak memory of a training step in GiB."""
        return self.memory_bytes / GIB

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Return one line for people."""
        axes = " × ".join(map(str, self.latent_grid))
        parts = [
            f"{self.tokens:,} tokens a volume ({axes})",
            f"{self.parameters / 1e6:.1f} M parameters",
            f"about {max(self.memory_gib, 0.1):.1f} GiB a device",
            f"{self.checkpoint_bytes / 1e6:,.0f} MB a checkpoint",
        ]
        if self.store_bytes_per_volume:
            parts.append(f"{self.store_bytes_per_volume / 1e3:,.0f} kB of tokens a volume")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Convolution:
    """kernel³ convolution from ``inputs`` to ``outputs`` channels over ``voxels``, 1/1 being the folded grid.

    fraction: its input's share of the voxels of the network's first resolution.
    """

    inputs: int
    outputs: int
    fraction: float
    normalised: bool
    kernel: int = 3

    @property
    def parameters(self) -> int:
        norm = 2 * self.inputs if self.normalised else 0
        return self.kernel**3 * self.inputs * self.outputs + self.outputs + norm


def estimate(
    config: RunConfig, *, autoencoder: FSQModelConfig | KLModelConfig | None = None, device: Device = "cuda"
) -> Resources:
    """Estimate what training ``config`` needs.

    autoencoder: the stage-1 model under a transformer, default: the schema's. device: where it trains.
    """
    if isinstance(config, Stage1Config):
        return _estimate_autoencoder(config, device)
    if isinstance(config, MaisiDiffusionConfig):
        vae = autoencoder if isinstance(autoencoder, KLModelConfig) else KLModelConfig()
        return _estimate_diffusion(config, vae, device)
    assert isinstance(config, TransformerConfig)  # later stages have estimates of their own
    tokenizer = autoencoder if isinstance(autoencoder, FSQModelConfig) else FSQModelConfig()
    return _estimate_transformer(config, tokenizer, device)


def downsampling_factor(model: FSQModelConfig | KLModelConfig) -> int:
    """Return how many voxels a token spans along each axis."""
    return model.space_to_depth * 2 ** (len(model.num_channels) - 1)


def latent_channels(model: FSQModelConfig | KLModelConfig) -> int:
    """Return the channels Z of the latent."""
    return model.latent_channels if isinstance(model, KLModelConfig) else len(model.levels)


def latent_grid(grid: Sequence[int], factor: int) -> tuple[int, int, int]:
    """Return the token grid of ``grid`` voxels, each side rounded up to a whole token."""
    h, w, d = (-(-side // factor) for side in grid)
    return h, w, d


def _estimate_autoencoder(config: AutoencoderConfig | MaisiVAEConfig, device: Device) -> Resources:
    model, data = config.model, config.data
    layers = _autoencoder_layers(model)
    adversary = _discriminator_layers(config.loss.adversarial.discriminator)
    if config.loss.adversarial.weight == 0 and config.loss.perceptual.network != "discriminator_features":
        adversary = []
    parameters = sum(layer.parameters for layer in layers + adversary)
    half = half_bytes(config, device)
    crop = data.batch_size * prod(data.crop_size or data.grid)
    whole = prod(data.grid) if data.crop_size is None or data.whole_volume_fraction > 0 else 0
    voxels = max(crop, whole)
    kept = sum(_kept_bytes(layer, half) for layer in layers) * voxels / model.space_to_depth**3
    if model.use_checkpointing:
        kept /= 4  # the inputs of blocks stay, the largest block is recomputed
    kept += 4 * voxels * sum(_kept_bytes(layer, half) for layer in adversary)
    grid = latent_grid(data.grid, downsampling_factor(model))
    ema = config.training.ema is not None
    return Resources(
        grid=data.grid,
        latent_grid=grid,
        tokens=prod(grid),
        positions=0,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, kept, ema),
        checkpoint_bytes=checkpoint_bytes(parameters, ema),
        store_bytes_per_volume=0,
    )


def _autoencoder_layers(model: FSQModelConfig | KLModelConfig) -> list[_Convolution]:
    widths, blocks = model.num_channels, model.num_res_blocks
    last = len(widths) - 1
    shares = [0.125**i for i in range(len(widths))]
    latent = latent_channels(model)
    folded = model.space_to_depth**3
    layers = [_Convolution(model.in_channels * folded, widths[0], 1.0, False)]
    for i, share in enumerate(shares):
        layers += _resolution(widths[max(i - 1, 0)], widths[i], blocks[i], share)
        if i < last:
            layers.append(_Convolution(widths[i], widths[i], share, False))
    layers += [
        _Convolution(widths[last], latent, shares[last], True),
        # Of the mean (and for KL the deviation) before the latent, and the one after it.
        *[_Convolution(latent, latent, shares[last], False, kernel=1)] * (3 if model.kind == "kl" else 2),
        _Convolution(latent, widths[last], shares[last], False),
    ]
    for i in reversed(range(len(widths))):
        layers += _resolution(widths[min(i + 1, last)], widths[i], blocks[i], shares[i])
        if i > 0:
            layers.append(_Convolution(widths[i], widths[i], shares[i - 1], False))
    layers.append(_Convolution(widths[0], model.out_channels * folded, 1.0, True))
    return layers


def _resolution(inputs: int, outputs: int, blocks: int, share: float) -> list[_Convolution]:
    layers: list[_Convolution] = []
    for _ in range(blocks):
        layers += [_Convolution(inputs, outputs, share, True), _Convolution(outputs, outputs, share, True)]
        if inputs != outputs:
            layers.append(_Convolution(inputs, outputs, share, False, kernel=1))
        inputs = outputs
    return layers


def _discriminator_layers(model: DiscriminatorConfig) -> list[_Convolution]:
    widths = [model.channels * 2**i for i in range(model.num_layers_d + 1)]
    layers = [_Convolution(model.in_channels, widths[0], 1.0, False, kernel=4)]
    layers += [
        _Convolution(widths[i], widths[i + 1], 0.125 ** (i + 1), True, kernel=4)
        for i in range(model.num_layers_d)
    ]
    layers.append(_Convolution(widths[-1], 1, 0.125**model.num_layers_d, True, kernel=4))
    return layers


def _kept_bytes(layer: _Convolution, half: int) -> float:
    """Return the bytes kept for the backward pass for each voxel of the first resolution."""
    return (8 + half if layer.normalised else half) * layer.inputs * layer.fraction


def _estimate_transformer(
    config: TransformerConfig, autoencoder: FSQModelConfig, device: Device
) -> Resources:
    model = config.model
    grid = latent_grid(config.data.grid, downsampling_factor(autoencoder))
    positions = prod(latent_grid(grid, model.patch_size))
    logits = model.patch_size**3 * num_logits(autoencoder.levels, model.groups)
    parameters = _transformer_parameters(config, len(autoencoder.levels), logits)
    half = half_bytes(config, device)
    width, ratio = model.embed_dim, model.mlp_ratio
    block = width * (16 + half * (12 + 2 * ratio) + 2)
    blocks = model.num_blocks
    per_position = block + 4 * width * blocks if model.use_checkpointing else block * blocks
    context = context_positions(config, grid)
    kept = config.data.batch_size * ((positions + context) * per_position + positions * 3 * 4 * logits)
    ema = config.training.ema is not None
    token_bytes = 2 if prod(autoencoder.levels) <= 2**16 else 4
    copies = 2 if config.data.store_flips else 1
    return Resources(
        grid=config.data.grid,
        latent_grid=grid,
        tokens=prod(grid),
        positions=positions,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, kept, ema),
        checkpoint_bytes=checkpoint_bytes(parameters, ema),
        store_bytes_per_volume=copies * prod(grid) * (token_bytes + 1 + 2 * len(autoencoder.levels)),
    )


def _estimate_diffusion(
    config: MaisiDiffusionConfig, autoencoder: KLModelConfig, device: Device
) -> Resources:
    channels, half = autoencoder.latent_channels, half_bytes(config, device)
    grid = latent_grid(config.data.grid, downsampling_factor(autoencoder))
    cost = flow_cost(config.model, latent_channels=channels, half_bytes=half)
    ema = config.training.ema is not None
    copies = 2 if config.data.store_flips else 1
    return Resources(
        grid=config.data.grid,
        latent_grid=grid,
        tokens=prod(grid),
        positions=prod(grid),
        parameters=cost.parameters,
        memory_bytes=peak_bytes(cost.parameters, config.data.batch_size * prod(grid) * cost.kept_bytes, ema),
        checkpoint_bytes=checkpoint_bytes(cost.parameters, ema),
        store_bytes_per_volume=copies * prod(grid) * (2 * channels + 1),
    )


def _transformer_parameters(config: TransformerConfig, channels: int, logits: int) -> int:
    model = config.model
    width = model.embed_dim
    attention = 4 * width * (width + 1)
    mlp = int(2 * model.mlp_ratio * width * width + (model.mlp_ratio + 1) * width)
    modulation = 6 * width * (width + 1)
    source = channels if model.kind == "decoder" else 0
    tokens_in = model.patch_size**3 * (channels + 1 + source)
    ends = (tokens_in + 1) * width + 2 * width * (width + 1) + (width + 1) * logits
    labels = (model.num_classes + 1) * width
    return (
        model.num_blocks * (attention + mlp + modulation)
        + ends
        + labels
        + _processor_parameters(model, channels)
    )


def _processor_parameters(model: TransformerModelConfig, channels: int) -> int:
    """Return the parameters of a ModalityProcessor beyond its table of targets."""
    if model.kind != "single_stream":
        return 0
    held, width = model.patch_size**3 * channels, model.embed_dim
    aligned = model.num_classes * (held + 1) * width if model.aligned else 0
    return (held * model.context_stride**3 + 1 + width + 1 + model.num_classes + 3 + 1) * width + aligned


def context_positions(config: TransformerConfig, grid: Sequence[int]) -> int:
    """Return the longest context of a sample: a position a label beside those of the sources."""
    if config.model.kind != "single_stream":
        return 0
    positions = prod(-(-side // (config.model.patch_size * config.model.context_stride)) for side in grid)
    return config.in_context.slots(config.data.images_per_case) * (positions + 1) + 1


def num_logits(levels: Sequence[int], groups: str | list[list[int]]) -> int:
    """Return the logits of a token: the sizes of its groups of levels together."""
    if groups == "dense":
        return prod(levels)
    if groups == "per_level":
        return sum(levels)
    if isinstance(groups, list):
        return sum(prod(levels[i] for i in group) for group in groups)
    indices = range(len(levels))
    halves = [[i for i in indices if mask >> i & 1] for mask in range(2 ** len(levels))]
    products = [prod(levels[i] for i in half) for half in halves]
    larger = min(max(product, prod(levels) // product) for product in products)
    return larger + prod(levels) // larger


def half_bytes(config: RunConfig, device: Device) -> int:
    """Return the bytes of a value in the precision that matrix products run in."""
    precision = config.trainer.precision
    return 2 if precision == "bf16-mixed" or (precision == "auto" and device == "cuda") else 4


def peak_bytes(parameters: int, kept: float, ema: bool) -> int:
    """Return the peak of a training step: weights, gradients, moments, and what is ``kept``."""
    return int(OVERHEAD * (parameters * (_STATE_BYTES + _EMA_BYTES * ema) + kept))


def checkpoint_bytes(parameters: int, ema: bool) -> int:
    """Return the size of one checkpoint file."""
    return parameters * (12 + _EMA_BYTES * ema)


def stage1_multiplications(config: AutoencoderConfig | MaisiVAEConfig) -> float:
    """Return the multiply-adds of a training step on crops, forward and backward, adversary included."""
    model, data = config.model, config.data
    adversary = (
        _discriminator_layers(config.loss.adversarial.discriminator) if config.loss.adversarial.weight else []
    )
    voxels = data.batch_size * prod(data.crop_size or data.grid)
    # A backward pass costs two forward ones; real and reconstructed volumes pass the adversary about four times.
    network = 3 * sum(_work(layer) for layer in _autoencoder_layers(model)) / model.space_to_depth**3
    return voxels * (network + 4 * 2 * sum(_work(layer) for layer in adversary))


def _work(layer: _Convolution) -> float:
    return layer.kernel**3 * layer.inputs * layer.outputs * layer.fraction
