"""The in-context decoder with its cache against the same network without one.

One sample in 12 steps from 1, 2 or 3 sources. With the cache, keys and values of the context are computed once, which
is included in the time; without it, context and target pass through every block at every step. The arm without cache
runs at its best: no mask (context and target attend in two calls) and no padding. Both predict every token at every
step. ``max_rel_diff`` compares the logits of both; ``guided_3`` is three sources with guidance, both branches in one
batch, against the same without a cache.

    python benchmarks/bench_context_cache.py [--quick] [--threads N]
"""

import math
from collections.abc import Callable

import _harness
import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.generator.modality_processor import InContextCondition
from prod9.generator.modules import normalise
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.token_decoder import finish

LEVELS = (8, 8, 8, 6, 5)


def condition(grid: tuple[int, ...], sources: int) -> InContextCondition:
    generator = torch.Generator().manual_seed(sources)
    latents = torch.randn(1, sources, len(LEVELS), *grid, generator=generator)
    return InContextCondition(torch.tensor([3]), torch.arange(sources)[None], latents)


def whole_pass(
    decoder: TransformerDecoderSingleStream, tokens: Tensor, mask: Tensor, given: InContextCondition
) -> Tensor:
    """Return the logits of one pass of context and target together, for samples of equal context length."""
    context, _ = decoder.condition(given)
    x = decoder.embed(tokens, mask)
    aligned = decoder.condition.aligned(given)
    x = x if aligned is None else x + aligned
    embedded = F.silu(decoder.condition.modulator(given))
    length, joint = context.shape[1], torch.cat([context, x], 1)
    for block in decoder.adaln_blocks:
        shift, scale, gate, shift2, scale2, gate2 = block.modulate(embedded).chunk(6, -1)
        query, key, value = block.attention.project(normalise(joint, shift, scale))
        before = (part[:, :, :length] for part in (query, key, value))
        mixed = torch.cat(
            [
                F.scaled_dot_product_attention(*before),
                F.scaled_dot_product_attention(query[:, :, length:], key, value),
            ],
            2,
        )
        joint = torch.addcmul(joint, gate, block.attention.merge(mixed))
        joint = torch.addcmul(joint, gate2, block.mlp(normalise(joint, shift2, scale2)))
    features = finish(joint[:, length:], decoder.modulation(embedded))
    return decoder.predict(features, tuple(tokens.shape[1:])).values


def arms(
    decoder: TransformerDecoderSingleStream, given: InContextCondition, grid: tuple[int, ...], steps: int
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return a sample's passes with and without the cache."""
    tokens = torch.zeros(len(given), *grid, dtype=torch.int64)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    # One bucket at a time: an uncached pass over several lengths would have to pad.
    buckets = [given[k : k + 1] for k in range(len(given))] if given.dropped is not None else [given]

    def cached() -> Tensor:
        prepared = decoder.prepare(given)
        for _ in range(steps):
            logits = decoder(tokens, mask, prepared).values
        return logits

    def uncached() -> Tensor:
        for _ in range(steps):
            parts = [whole_pass(decoder, tokens[:1], mask[:1], _shortened(part)) for part in buckets]
        return torch.cat(parts)

    return cached, uncached


def _shortened(given: InContextCondition) -> InContextCondition:
    """Return a dropped sample without the sources that it does not use."""
    if not bool(given.is_dropped.all()):
        return given
    return InContextCondition(
        given.target_label, given.source_labels[:, :0], given.source_latents[:, :0], dropped=given.dropped
    )


def main() -> None:
    bench = _harness.start("bench_context_cache", __doc__)
    grid, width, depth, steps = ((8, 8, 8), 256, 4, 12) if bench.quick else ((8, 8, 8), 384, 6, 12)
    rounds = 2 if bench.quick else 4
    torch.manual_seed(0)
    decoder = TransformerDecoderSingleStream(
        levels=LEVELS, embed_dim=width, num_blocks=depth, num_heads=width // 64, groups="balanced"
    ).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    bench.sizes |= {"tokens": math.prod(grid), "width": width, "blocks": depth, "steps": steps}
    worst = 0.0
    with torch.inference_mode():
        for sources in (1, 2, 3):
            given = condition(grid, sources)
            cached, uncached = arms(decoder, given, grid, steps)
            worst = max(worst, _harness.max_rel_diff(uncached(), cached()))
            times = bench.time(
                {f"{sources} sources, cached": cached, f"{sources} sources, not": uncached}, rounds=rounds
            )
            bench.ratio(
                f"sources_{sources}", times[f"{sources} sources, not"], times[f"{sources} sources, cached"]
            )
        guided = condition(grid, 3)
        cached, uncached = arms(decoder, guided.cat(guided.unconditional()), grid, steps)
        worst = max(worst, _harness.max_rel_diff(uncached(), cached()))
        times = bench.time({"guided, cached": cached, "guided, not": uncached}, rounds=rounds)
        bench.ratio("guided_3", times["guided, not"], times["guided, cached"])
    bench.value("max_rel_diff", worst)
    bench.report(["prod9"])


if __name__ == "__main__":
    main()
