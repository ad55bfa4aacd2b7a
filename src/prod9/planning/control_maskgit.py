"""What training control of a transformer needs: see :mod:`prod9.planning.estimates` for the formulas.

- parameters: a copy of every second block without the projection of the condition, a square layer a residual,
  copies of the base's input and head, the condition encoder. The frozen base adds 4 bytes a parameter.
- activations: those of training the base, since gradients pass through it, once more for the copies by their
  share of the blocks, and four values a channel of each stage of the condition encoder.
- store: the segmentations compress to nothing beside the tokens.
"""

from dataclasses import replace
from math import prod

from prod9.config.schema import (
    FSQModelConfig,
    MaskGiTControlNetLightningConfig,
    TransformerConfig,
    TransformerModelConfig,
)
from prod9.planning.estimates import (
    OVERHEAD,
    Device,
    Resources,
    checkpoint_bytes,
    estimate,
    half_bytes,
    num_logits,
    peak_bytes,
)


def estimate_controlnet(
    config: MaskGiTControlNetLightningConfig,
    *,
    base: TransformerConfig,
    autoencoder: FSQModelConfig,
    device: Device = "cuda",
) -> Resources:
    """Estimate what training ``config`` needs on the base of ``base`` and its ``autoencoder``."""
    sections = {name: getattr(config, name) for name in ("data", "training", "trainer")}
    need = estimate(base.model_copy(update=sections), autoencoder=autoencoder, device=device)
    ema = config.training.ema is not None
    parameters = _parameters(config, base.model, autoencoder)
    blocks = base.model.num_blocks
    kept = (need.memory_bytes - peak_bytes(need.parameters, 0, ema)) / OVERHEAD
    kept *= 1 + (blocks // 2) / blocks
    kept += config.data.batch_size * _encoder_bytes(config, autoencoder, device)
    return replace(
        need,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, kept + 4 * need.parameters, ema),
        checkpoint_bytes=checkpoint_bytes(parameters, ema),
    )


def encoder_strides(factor: int) -> list[int]:
    """Return the strides of the condition encoder: the prime factors of a latent position's voxels along an axis."""
    left, strides, divisor = factor, [], 2
    while left > 1:
        while left % divisor == 0:
            strides.append(divisor)
            left //= divisor
        divisor += 1
    return strides


def _widths(config: MaskGiTControlNetLightningConfig, count: int) -> list[int]:
    channels = config.model.channels
    return [channels[min(i, len(channels) - 1)] for i in range(count)]


def _parameters(
    config: MaskGiTControlNetLightningConfig, base: TransformerModelConfig, autoencoder: FSQModelConfig
) -> int:
    width, ratio = base.embed_dim, base.mlp_ratio
    tokens, copies = base.patch_size**3, base.num_blocks // 2
    attention = 4 * width * (width + 1) + width
    mlp = int(2 * ratio * width * width + (ratio + 1) * width)
    ends = (tokens * (len(autoencoder.levels) + 1) + 1) * width + width
    head = (2 * width + 1) * tokens * num_logits(autoencoder.levels, base.groups)
    return (
        copies * (attention + mlp + width * (width + 1))
        + ends
        + head
        + _encoder_parameters(config, base, autoencoder)
    )


def _encoder_parameters(
    config: MaskGiTControlNetLightningConfig, base: TransformerModelConfig, autoencoder: FSQModelConfig
) -> int:
    told, last = config.condition, config.model.channels[-1]
    planes = 0 if told.condition_type == "label" else told.num_mask_classes
    strides = encoder_strides(autoencoder.downsampling_factor) if planes else []
    widths = _widths(config, len(strides))
    total, before = 0, 0
    for stride, width in zip(strides, widths, strict=True):
        kernel = 2 * (stride // 2) + 1
        total += kernel**3 * (before + planes) * width + width + 27 * width * width + width
        before = width
    labels = last if told.condition_type != "mask" else 0
    total += 27 * (before + planes + labels) * last + last + (last + 1) * last
    total += (base.patch_size**3 * last + 1) * base.embed_dim
    return total + (labels and (base.num_classes + 1) * last)


def _encoder_bytes(
    config: MaskGiTControlNetLightningConfig, autoencoder: FSQModelConfig, device: Device
) -> float:
    """Return the activations of the encoder on one volume."""
    if config.condition.condition_type == "label":
        return 0.0
    half, voxels, total = half_bytes(config, device), float(prod(config.data.grid)), 0.0
    total += 4 * voxels * config.condition.num_mask_classes
    strides = encoder_strides(autoencoder.downsampling_factor)
    for stride, width in zip(strides, _widths(config, len(strides)), strict=True):
        voxels /= stride**3
        total += 4 * half * width * voxels
    return total
