"""What training control of a rectified flow needs: see :mod:`prod9.planning.estimates` for the formulas.

- parameters: the U-Net's way down and middle without its spacing and regions, a pointwise convolution a residual, the
  condition's encoder. The frozen base adds 4 bytes a parameter.
- activations: gradients pass through the base's way up and through the copy of its way down, together about one
  U-Net; with region contrast twice. The encoder keeps four values a channel of each stage.
- store: the segmentations compress to nothing beside the latents.
"""

from dataclasses import replace
from itertools import pairwise
from math import prod

from prod9.config.schema import KLModelConfig, MaisiControlNetConfig, MaisiDiffusionConfig
from prod9.planning.control_maskgit import encoder_strides
from prod9.planning.estimates import (
    OVERHEAD,
    Device,
    Resources,
    checkpoint_bytes,
    estimate,
    half_bytes,
    peak_bytes,
)
from prod9.planning.flow import copied_parameters


def estimate_flow_controlnet(
    config: MaisiControlNetConfig,
    *,
    base: MaisiDiffusionConfig,
    autoencoder: KLModelConfig,
    device: Device = "cuda",
) -> Resources:
    """Estimate what training ``config`` needs on ``base``, a flow in the latent of ``autoencoder``."""
    sections = {name: getattr(config, name) for name in ("data", "training", "trainer")}
    model = base.model.model_copy(update={"use_checkpointing": config.model.use_checkpointing})
    need = estimate(
        base.model_copy(update={**sections, "model": model}), autoencoder=autoencoder, device=device
    )
    ema = config.training.ema is not None
    kept = (need.memory_bytes - peak_bytes(need.parameters, 0, ema)) / OVERHEAD
    kept += config.data.batch_size * _encoder_bytes(config, autoencoder, device)
    passes = 1 if config.loss.contrast is None else 2
    parameters = control_parameters(config, base, autoencoder)
    return replace(
        need,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, passes * kept + 4 * need.parameters, ema),
        checkpoint_bytes=checkpoint_bytes(parameters, ema),
    )


def control_parameters(
    config: MaisiControlNetConfig, base: MaisiDiffusionConfig, autoencoder: KLModelConfig
) -> int:
    """Return the parameters of the control network."""
    model = base.model
    widths, last = model.num_channels, len(model.num_channels) - 1
    residuals = [widths[0], widths[last]]
    for i, width in enumerate(widths):
        residuals += [width] * (model.num_res_blocks + (i < last))
    total = copied_parameters(model, latent_channels=autoencoder.latent_channels)
    return (
        total
        + sum(width * (width + 1) for width in residuals)
        + _encoder_parameters(config, base, autoencoder)
    )


def _planes(config: MaisiControlNetConfig) -> int:
    told = config.condition
    of_a_mask = 8 if told.seg_planes == "bits" else told.num_mask_classes
    return of_a_mask * told.takes_seg + len(told.source_modalities)


def _encoder_parameters(
    config: MaisiControlNetConfig, base: MaisiDiffusionConfig, autoencoder: KLModelConfig
) -> int:
    channels, planes, out = config.model.channels, _planes(config), base.model.num_channels[0]
    if config.model.encoder == "maisi":
        pairs = [(planes, channels[0])]
        for before, after in pairwise(channels):
            pairs += [(before, before), (before, after)]
        return sum(27 * a * b + b for a, b in [*pairs, (channels[-1], out)])
    last, total, before = channels[-1], 0, 0
    for i, stride in enumerate(encoder_strides(autoencoder.downsampling_factor) if planes else []):
        width = channels[min(i, len(channels) - 1)]
        total += (2 * (stride // 2) + 1) ** 3 * (before + planes) * width + width
        total += 27 * width * width + width
        before = width
    labels = last if "label" in config.condition.conditions else 0
    total += 27 * (before + planes + labels) * last + last + (last + 1) * out
    return total + (labels and ((base.model.num_class_embeds or 0) + 1) * last)


def _encoder_bytes(config: MaisiControlNetConfig, autoencoder: KLModelConfig, device: Device) -> float:
    """Return the activations of the condition's encoder on one volume."""
    channels, voxels = config.model.channels, float(prod(config.data.grid))
    strides = encoder_strides(autoencoder.downsampling_factor) if _planes(config) else []
    half, total = half_bytes(config, device), 4.0 * voxels * _planes(config)
    # MAISI's encoder works at full resolution too; ours begins with a stride.
    first = [1] if config.model.encoder == "maisi" else []
    for i, stride in enumerate([*first, *strides]):
        voxels /= stride**3
        total += 4 * half * channels[min(i, len(channels) - 1)] * voxels
    return total
