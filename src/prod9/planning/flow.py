"""Counts the parameters and activations of the diffusion U-Net from its configuration, without torch.

Residual blocks hold two normalised convolutions and a projection of the time embedding; attention four linear
layers. What is kept for the backward pass follows the rules of :mod:`prod9.planning.estimates`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from prod9.config.schema import RectifiedFlowModelConfig


@dataclass(frozen=True)
class FlowCost:
    """parameters: of the U-Net. kept_bytes: for the backward pass, a position of the latent and sample."""

    parameters: int
    kept_bytes: float


@dataclass(frozen=True)
class _Block:
    """One residual block at ``share`` of the latent's positions, with attention after it or not."""

    inputs: int
    outputs: int
    share: float
    attention: bool


def flow_cost(model: RectifiedFlowModelConfig, *, latent_channels: int, half_bytes: int) -> FlowCost:
    """Count ``model`` for a latent of ``latent_channels``; half_bytes: of an activation (2 under bf16)."""
    first, embedding = model.num_channels[0], 4 * model.num_channels[0]
    inputs = [(3, model.include_spacing_input), (4, model.include_top_region_index_input)]
    inputs.append((4, model.include_bottom_region_index_input))
    widths = [width for width, given in inputs if given]
    mlps = sum(_linear(width, embedding) + _linear(embedding, embedding) for width in (first, *widths))
    total = mlps + (model.num_class_embeds or 0) * embedding
    total += _conv(latent_channels, first) + 2 * first + _conv(first, latent_channels)
    kept = float((latent_channels + first) * half_bytes)
    for block in _blocks(model):
        total += _block_parameters(block, embedding * (1 + len(widths)), model.include_fc)
        kept += block.share * (8 + half_bytes) * (block.inputs + block.outputs)
        if block.attention:
            kept += block.share * (8 + 5 * half_bytes) * block.outputs
    if not model.resblock_updown:
        for width, share in _resamplers(model):
            total += _conv(width, width)
            kept += share * half_bytes * width
    return FlowCost(total, kept / 4 if model.use_checkpointing else kept)


def flow_multiplications(model: RectifiedFlowModelConfig, *, latent_channels: int) -> float:
    """Return the multiply-adds of a forward pass for each position of the latent; attention's products aside."""
    ends = 27 * 2 * latent_channels * model.num_channels[0]
    return ends + sum(
        block.share
        * (27 * (block.inputs + block.outputs) * block.outputs + 4 * block.attention * block.outputs**2)
        for block in _blocks(model)
    )


def copied_parameters(model: RectifiedFlowModelConfig, *, latent_channels: int) -> int:
    """Count what a control network copies of ``model``: all but the way up and what spacing and regions add."""
    widths, last = model.num_channels, len(model.num_channels) - 1
    first, embedding = widths[0], 4 * widths[0]
    total = _linear(first, embedding) + _linear(embedding, embedding) + _conv(latent_channels, first)
    total += (model.num_class_embeds or 0) * embedding
    down = len(widths) * model.num_res_blocks + (last if model.resblock_updown else 0)
    for block in islice(_blocks(model), down + 2):
        total += _block_parameters(block, embedding, model.include_fc)
    if not model.resblock_updown:
        total += sum(_conv(width, width) for width in widths[:-1])
    return total


def _blocks(model: RectifiedFlowModelConfig) -> Iterator[_Block]:
    widths, count, last = model.num_channels, model.num_res_blocks, len(model.num_channels) - 1
    for i, width in enumerate(widths):
        share, attention = 0.125**i, model.attention_levels[i]
        for j in range(count):
            yield _Block(widths[max(i - 1, 0)] if j == 0 else width, width, share, attention)
        if i < last and model.resblock_updown:
            yield _Block(width, width, share, False)
    yield _Block(widths[last], widths[last], 0.125**last, True)
    yield _Block(widths[last], widths[last], 0.125**last, False)
    for i in reversed(range(last + 1)):
        before = widths[min(i + 1, last)]
        for j in range(count + 1):
            skip = widths[max(i - 1, 0)] if j == count else widths[i]
            yield _Block(
                (before if j == 0 else widths[i]) + skip, widths[i], 0.125**i, model.attention_levels[i]
            )
        if i > 0 and model.resblock_updown:
            yield _Block(widths[i], widths[i], 0.125 ** (i - 1), False)


def _resamplers(model: RectifiedFlowModelConfig) -> Iterator[tuple[int, float]]:
    for i, width in enumerate(model.num_channels):
        if i < len(model.num_channels) - 1:
            yield width, 0.125**i
        if i > 0:
            yield width, 0.125 ** (i - 1)


def _block_parameters(block: _Block, embedding: int, include_fc: bool) -> int:
    inputs, outputs = block.inputs, block.outputs
    total = 2 * inputs + _conv(inputs, outputs) + _linear(embedding, outputs)
    total += 2 * outputs + _conv(outputs, outputs)
    if inputs != outputs:
        total += _linear(inputs, outputs)
    if block.attention:
        total += 2 * outputs + (4 if include_fc else 3) * _linear(outputs, outputs)
    return total


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _conv(inputs: int, outputs: int) -> int:
    return 27 * inputs * outputs + outputs
