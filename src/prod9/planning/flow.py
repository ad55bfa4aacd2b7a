"""Activations and work of MAISI's stage 2: see :mod:`prod9.planning.estimates` for the rules."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from prod9.config.schema import KLModelConfig, MaisiDiffusionConfig, RectifiedFlowModelConfig
from prod9.planning.footprint import Footprint, Widths, latent_grid, num_passes


@dataclass(frozen=True)
class _Block:
    """One residual block at ``share`` of the latent's positions, with attention after it or not."""

    inputs: int
    outputs: int
    share: float
    attention: bool


def flow_footprint(config: MaisiDiffusionConfig, widths: Widths, autoencoder: KLModelConfig) -> Footprint:
    """Return what a step of ``config`` in the latent of ``autoencoder`` keeps."""
    data, channels = config.data, autoencoder.latent_channels
    grid = latent_grid(data.grid, autoencoder.downsampling_factor)
    copies = 2 if data.store_flips else 1
    return Footprint(
        latent_grid=grid,
        positions=prod(grid),
        kept_bytes=data.batch_size * prod(grid) * _kept_bytes(config.model, channels, widths),
        passing_bytes=4 * data.batch_size * prod(grid) * _widest(config.model),
        store_bytes_per_volume=copies * prod(grid) * (2 * channels + 1),
    )


def flow_work(config: MaisiDiffusionConfig, positions: int, latent_channels: int) -> float:
    """Return the multiply-adds of a training step, forward and backward; attention's products aside."""
    work = 27 * 2 * latent_channels * config.model.num_channels[0] + sum(map(_work, _blocks(config.model)))
    return num_passes(recomputes=config.model.use_checkpointing) * config.data.batch_size * positions * work


def work_of_way_down(model: RectifiedFlowModelConfig) -> float:
    """Return the share of the way down and the middle in the work of a forward pass."""
    levels = [sum(map(_work, level)) for level in _levels(model)]
    return sum(levels[: len(model.num_channels) + 1]) / sum(levels)


def skips_of(model: RectifiedFlowModelConfig) -> float:
    """Return the channels of all skips together, for each position of the latent."""
    down = list(_levels(model))[: len(model.num_channels)]
    return model.num_channels[0] + sum(block.share * block.outputs for level in down for block in level)


def recomputed_bytes(model: RectifiedFlowModelConfig, widths: Widths) -> float:
    """Return the bytes of the widest level for each position of the latent: what exists at once of recomputed ones."""
    return max(sum(_block_bytes(block, widths) for block in level) for level in _levels(model))


def _work(block: _Block) -> float:
    return block.share * (
        27 * (block.inputs + block.outputs) * block.outputs + 4 * block.attention * block.outputs**2
    )


def _kept_bytes(model: RectifiedFlowModelConfig, latent_channels: int, widths: Widths) -> float:
    """Return the bytes kept for the backward pass for each position of the latent."""
    half = widths.half
    kept = float((latent_channels + model.num_channels[0]) * half)
    if model.use_checkpointing:
        # Levels are recomputed one by one; what they are given, and the skips, stay.
        stays = sum(half * block.share * block.outputs for level in _levels(model) for block in level)
        return kept + stays + recomputed_bytes(model, widths)
    kept += sum(_block_bytes(block, widths) for block in _blocks(model))
    if not model.resblock_updown:
        kept += sum(share * half * width for width, share in _resamplers(model))
    return kept


def _widest(model: RectifiedFlowModelConfig) -> float:
    """Return the channels of the input and the output of the widest block, for each position of the latent."""
    return max(block.share * (block.inputs + block.outputs) for block in _blocks(model))


def _block_bytes(block: _Block, widths: Widths) -> float:
    kept = (widths.norm + widths.half) * (block.inputs + block.outputs)
    return block.share * (kept + block.attention * (8 + 5 * widths.half) * block.outputs)


def _blocks(model: RectifiedFlowModelConfig) -> Iterator[_Block]:
    for level in _levels(model):
        yield from level


def _levels(model: RectifiedFlowModelConfig) -> Iterator[list[_Block]]:
    """Yield the blocks of each level: the way down, the middle, the way up."""
    widths, count, last = model.num_channels, model.num_res_blocks, len(model.num_channels) - 1
    for i, width in enumerate(widths):
        share, attention = 0.125**i, model.attention_levels[i]
        level = [
            _Block(widths[max(i - 1, 0)] if j == 0 else width, width, share, attention) for j in range(count)
        ]
        yield [*level, *[_Block(width, width, share, False)] * (i < last and model.resblock_updown)]
    yield [
        _Block(widths[last], widths[last], 0.125**last, True),
        _Block(widths[last], widths[last], 0.125**last, False),
    ]
    for i in reversed(range(last + 1)):
        before, share = widths[min(i + 1, last)], 0.125**i
        level = [
            _Block(
                (before if j == 0 else widths[i]) + (widths[max(i - 1, 0)] if j == count else widths[i]),
                widths[i],
                share,
                model.attention_levels[i],
            )
            for j in range(count + 1)
        ]
        # The last block of a level enlarges: it works at the next finer one.
        yield [*level, *[_Block(widths[i], widths[i], 8 * share, False)] * (i > 0 and model.resblock_updown)]


def _resamplers(model: RectifiedFlowModelConfig) -> Iterator[tuple[int, float]]:
    for i, width in enumerate(model.num_channels):
        if i < len(model.num_channels) - 1:
            yield width, 0.125**i
        if i > 0:
            yield width, 0.125 ** (i - 1)
