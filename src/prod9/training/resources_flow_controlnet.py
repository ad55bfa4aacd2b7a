"""What training control of a rectified flow needs: see :mod:`prod9.training.resources` for the formulas.

- activations: gradients pass through the base's way up and through the copy of its way down, together about one
  U-Net; with region contrast twice. The condition encoder keeps four values a channel of each stage.
- parameters: the frozen base adds 4 bytes a parameter.
- store: the segmentations compress to nothing beside the latents.
"""

from dataclasses import replace
from math import prod

from prod9.training.config_schema import KLModelConfig, MaisiControlNetConfig, MaisiDiffusionConfig
from prod9.training.resources import (
    OVERHEAD,
    Device,
    Resources,
    checkpoint_bytes,
    estimate,
    half_bytes,
    peak_bytes,
)


def estimate_flow_controlnet(
    config: MaisiControlNetConfig,
    *,
    base: MaisiDiffusionConfig,
    autoencoder: KLModelConfig,
    parameters: int,
    device: Device = "cuda",
) -> Resources:
    """Estimate what training ``config`` needs on ``base``; parameters: of the control network."""
    sections = {name: getattr(config, name) for name in ("data", "training", "trainer")}
    model = base.model.model_copy(update={"use_checkpointing": config.model.use_checkpointing})
    need = estimate(
        base.model_copy(update={**sections, "model": model}), autoencoder=autoencoder, device=device
    )
    ema = config.training.ema is not None
    kept = need.memory_bytes / OVERHEAD - peak_bytes(need.parameters, 0, ema) / OVERHEAD
    kept += config.data.batch_size * _encoder_bytes(config, autoencoder, device)
    passes = 1 if config.loss.contrast is None else 2
    return replace(
        need,
        parameters=parameters,
        memory_bytes=peak_bytes(parameters, passes * kept + 4 * need.parameters, ema),
        checkpoint_bytes=checkpoint_bytes(parameters, ema),
    )


def _encoder_bytes(config: MaisiControlNetConfig, autoencoder: KLModelConfig, device: Device) -> float:
    """Return the activations of the condition's encoder on one volume."""
    told, channels, voxels = config.condition, config.model.channels, float(prod(config.data.grid))
    planes = (8 if told.seg_planes == "bits" else told.num_mask_classes) * told.takes_seg
    total = 4.0 * voxels * (planes + len(told.source_modalities))
    half, halvings = half_bytes(config, device), autoencoder.downsampling_factor.bit_length() - 1
    for i in range(halvings + 1):
        # MAISI's encoder also works at full resolution; ours begins with a stride.
        if i or config.model.encoder == "maisi":
            place = i if config.model.encoder == "maisi" else i - 1
            total += 4 * half * channels[min(place, len(channels) - 1)] * voxels / 8**i
    return total
