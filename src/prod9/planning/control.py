"""Activations of stage 3 of both families: see :mod:`prod9.planning.estimates` for the rules.

Gradients pass through the frozen base and through the copy of a part of it. The store needs no more than the base's:
segmentations compress to nothing beside tokens and latents.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from prod9.config.schema import (
    FSQModelConfig,
    KLModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaskGiTControlNetLightningConfig,
    RunConfig,
    TransformerConfig,
)
from prod9.planning.flow import flow_footprint, recomputed_bytes, skips_of, work_of_way_down
from prod9.planning.footprint import Footprint, Widths, num_passes
from prod9.planning.transformer import transformer_footprint

_SHARED = ("data", "training", "trainer")
"""Sections that hold for the base while it is steered."""


def control_maskgit_footprint(
    config: MaskGiTControlNetLightningConfig,
    widths: Widths,
    autoencoder: FSQModelConfig,
    base: TransformerConfig,
) -> Footprint:
    """Return what a step of ``config`` on ``base`` keeps.

    Args:
        config: of the control network.
        widths: bytes of a value that is kept.
        autoencoder: the stage-1 model whose tokens the base reads.
        base: the transformer, every second block of which is copied.
    """
    steered = base.model_copy(update={name: getattr(config, name) for name in _SHARED})
    needs, blocks = transformer_footprint(steered, widths, autoencoder), base.model.num_blocks
    frozen = transformer_footprint(steered, widths, autoencoder, frozen=True)
    encoder = 0.0
    if config.condition.takes_seg:
        strides = _encoder_strides(autoencoder.downsampling_factor)
        encoder = _encoder_bytes(
            config.model.channels,
            strides,
            half=widths.half,
            planes=config.condition.num_mask_classes,
            grid=config.data.grid,
        )
    kept = frozen.kept_bytes + needs.kept_bytes * (blocks // 2 / blocks) + config.data.batch_size * encoder
    return replace(needs, kept_bytes=kept)


def control_flow_footprint(
    config: MaisiControlNetConfig, widths: Widths, autoencoder: KLModelConfig, base: MaisiDiffusionConfig
) -> Footprint:
    """Return what a step of ``config`` on ``base`` keeps; with region contrast it makes two passes.

    The base's way up and the copy of its way down keep together what one U-Net does.

    Args:
        config: of the control network.
        widths: bytes of a value that is kept.
        autoencoder: the stage-1 model in whose latent the base works.
        base: the flow.
    """
    model = base.model.model_copy(update={"use_checkpointing": config.model.use_checkpointing})
    steered = base.model_copy(update={name: getattr(config, name) for name in _SHARED} | {"model": model})
    needs, condition = flow_footprint(steered, widths, autoencoder), config.condition
    planes_of_seg = 8 if condition.seg_planes == "bits" else condition.num_mask_classes
    planes = planes_of_seg * condition.takes_seg + len(condition.source_modalities)
    # MAISI's encoder works at full resolution too; ours begins with a stride.
    strides = [1] if config.model.encoder == "maisi" else []
    strides += _encoder_strides(autoencoder.downsampling_factor) if planes else []
    encoder = _encoder_bytes(
        config.model.channels, strides, half=widths.half, planes=planes, grid=config.data.grid
    )
    # Recomputation starts from the skips, which differ from the base's and the copy's: they are sums of both.
    sums = widths.half * needs.positions * skips_of(model) if model.use_checkpointing else 0.0
    passes, batch = 1 if config.loss.contrast is None else 2, config.data.batch_size
    kept = passes * (needs.kept_bytes + batch * (encoder + sums))
    if model.use_checkpointing:  # the levels of both passes are recomputed one after another
        kept -= (passes - 1) * batch * needs.positions * recomputed_bytes(model, widths)
    return replace(needs, kept_bytes=kept)


def control_work(config: RunConfig, base: TransformerConfig | MaisiDiffusionConfig, work: float) -> float:
    """Return the most multiply-adds of a sample, from ``work``, those of a sample in the training of ``base``.

    The base runs forward, and gradients pass through what comes after the control: all blocks of a transformer, the way
    up of a flow. Half of the blocks are copied, or the way down. Region contrast takes a second pass, and a sample
    whose control is dropped a further one of the base alone.
    """
    forward = work / num_passes(recomputes=base.model.use_checkpointing)
    steered, copied = 1.0, 0.5
    if base.stage == "maisi_diffusion":
        copied = work_of_way_down(base.model)
        steered = 1 - copied
    again = getattr(config.model, "use_checkpointing", base.model.use_checkpointing)
    passes = 1 if getattr(config.loss, "contrast", None) is None else 2
    return forward * (1 + passes * (1 + steered * (1 + again) + copied * (3 + again)))


def _encoder_strides(factor: int) -> list[int]:
    """Return the strides of the condition encoder: the prime factors of a latent position's voxels along an axis."""
    left, strides, divisor = factor, [], 2
    while left > 1:
        while left % divisor == 0:
            strides.append(divisor)
            left //= divisor
        divisor += 1
    return strides


def _encoder_bytes(
    channels: Sequence[int], strides: Sequence[int], *, half: int, planes: int, grid: Sequence[int]
) -> float:
    """Return the activations of the condition's encoder on one volume: four values per channel of each stage.

    Args:
        channels: widths of its stages; the last holds for all further ones.
        strides: of its stages.
        half: bytes of a value in the precision of matrix products.
        planes: input channels, in float32.
        grid: voxels of the volume.
    """
    voxels = float(prod(grid))
    total = 4 * voxels * planes
    for i, stride in enumerate(strides):
        voxels /= stride**3
        total += 4 * half * channels[min(i, len(channels) - 1)] * voxels
    return total
