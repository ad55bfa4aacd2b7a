"""Activations and work of MaskGiT's stage 2: see :mod:`prod9.planning.estimates` for the rules."""

from collections.abc import Sequence
from math import prod

from prod9.config.schema import FSQModelConfig, TransformerConfig
from prod9.planning.footprint import Footprint, Widths, latent_grid, num_passes


def transformer_footprint(
    config: TransformerConfig, widths: Widths, autoencoder: FSQModelConfig, *, frozen: bool = False
) -> Footprint:
    """Return what a step of ``config`` on tokens of ``autoencoder`` keeps.

    Args:
        config: of the transformer.
        widths: bytes of a value that is kept.
        autoencoder: the stage-1 model whose tokens it reads.
        frozen: gradients pass through its weights, which do not change.
    """
    model, data, levels = config.model, config.data, autoencoder.levels
    grid = latent_grid(data.grid, autoencoder.downsampling_factor)
    positions = prod(latent_grid(grid, model.patch_size))
    logits = model.patch_size**3 * _num_logits(levels, model.groups)
    width = model.embed_dim
    block = width * (16 + widths.half * (12 + 2 * model.mlp_ratio) + 2)
    if frozen:  # linear layers and gates need no input, and there is no dropout
        block = width * (8 + widths.half * (6 + model.mlp_ratio))
    per_position = (
        block + 4 * width * model.num_blocks if model.use_checkpointing else block * model.num_blocks
    )
    copies = 2 if data.store_flips else 1
    token_bytes = 2 if prod(levels) <= 2**16 else 4 if prod(levels) <= 2**31 else 8
    attended = positions + _context_positions(config, grid)
    kept = attended * per_position + positions * 3 * 4 * logits
    # The coupling keeps its hidden layer before and after the activation, for each group after the first.
    coupled = _num_groups(levels, model.groups) - 1
    kept += prod(grid) * coupled * 2 * 4 * model.coupling_channels
    return Footprint(
        latent_grid=grid,
        positions=positions,
        kept_bytes=data.batch_size * kept,
        passing_bytes=data.batch_size * attended * 4 * width * (1 + model.mlp_ratio),
        store_bytes_per_volume=copies * prod(grid) * (token_bytes + 1 + 2 * len(levels)),
    )


def transformer_work(config: TransformerConfig, needs: Footprint) -> float:
    """Return the multiply-adds of a training step with the longest context, forward and backward.

    Modulations, head and coupling aside. The backward pass of attention takes five products for two of the forward
    pass, since it computes the scores again.
    """
    model, passes = config.model, num_passes(recomputes=config.model.use_checkpointing)
    targets, context = needs.positions, _context_positions(config, needs.latent_grid)
    attended = targets * (targets + context) + context**2
    linear = model.embed_dim**2 * (4 + 2 * model.mlp_ratio) * (targets + context)
    attention = model.embed_dim * attended * (2 * (passes - 2) + 5)
    return config.data.batch_size * model.num_blocks * (passes * linear + attention)


def _context_positions(config: TransformerConfig, grid: Sequence[int]) -> int:
    """Return the longest context of a sample: a position per label beside those of the sources."""
    if config.model.kind != "single_stream":
        return 0
    positions = prod(latent_grid(grid, config.model.patch_size * config.model.context_stride))
    return config.in_context.slots(config.data.images_per_case) * (positions + 1) + 1


def _num_groups(levels: Sequence[int], groups: str | list[list[int]]) -> int:
    """Return how many groups of levels a token has."""
    if isinstance(groups, list):
        return len(groups)
    return {"dense": 1, "balanced": min(2, len(levels))}.get(groups, len(levels))


def _num_logits(levels: Sequence[int], groups: str | list[list[int]]) -> int:
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
