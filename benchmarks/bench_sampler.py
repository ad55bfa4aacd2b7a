"""MaskGiTSampler against diffusers' AmusedScheduler and x-transformers' NonAutoregressiveWrapper.

Overhead: the network's output is given, so only drawing, ranking and revealing are timed. Both peers take
dense logits; ours takes the same (``overhead_dense``, with the same algorithm, confidence) or one group per level
(``overhead_per_level``). End to end: networks of equal width and depth with random weights, x-transformers
with its top-k filter off and on, ours as the shipped configs have it (two groups, order halton). Ratios are
against the fastest peer. ``share_of_floor`` and ``train_share_of_floor``: time of the matrix products alone, at the
rate measured here, over our time end to end and over that of a training step without its optimizer.

    python benchmarks/bench_sampler.py [--quick] [--threads N]
"""

import math
import warnings
from collections.abc import Callable

import _harness
import torch
from torch import Tensor, nn

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.heads import TokenLogits, TokenVocabulary
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.transformer import TransformerDecoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AmusedScheduler
    from x_transformers import Encoder, NonAutoregressiveWrapper, TransformerWrapper

LEVELS = (8, 8, 8, 6, 5)
VOCAB = math.prod(LEVELS)


class GivenLogits:
    """A decoder whose output is given: it only selects the rows asked for."""

    def __init__(self, values: Tensor, vocabulary: TokenVocabulary) -> None:
        self.logits, self.vocabulary = TokenLogits(values, vocabulary), vocabulary

    def prepare(self, condition: MaskGiTCondition) -> None:
        """Nothing depends on the condition."""

    def __call__(
        self,
        tokens: Tensor,
        mask: Tensor,
        prepared: object,
        residuals: object = None,
        rows: Tensor | None = None,
    ) -> TokenLogits:
        """Return the given logits."""
        return self.logits if rows is None else self.logits.rows(rows)


class GivenDense(nn.Module):
    """What NonAutoregressiveWrapper needs of a network, with dense logits given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits[None], requires_grad=False)
        self.max_seq_len, self.emb_dim, self.num_tokens = len(logits), 8, VOCAB + 1

    def forward(self, tokens: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        """Return logits, and embeddings that nobody looks at."""
        return self.logits, tokens


def condition() -> MaskGiTCondition:
    return MaskGiTCondition(label=torch.zeros(1, dtype=torch.int64))


def ours(
    decoder: GivenLogits | TransformerDecoder, grid: tuple[int, int, int], order: str, steps: int
) -> Callable:
    scheduler = MaskGiTScheduler(scheduler_type="cosine")
    sampler = MaskGiTSampler(scheduler=scheduler, steps=steps, order=order)
    return lambda: sampler.sample(decoder, (1, *grid), condition(), torch.Generator().manual_seed(0))


def given(groups: str, dense: Tensor, grid: tuple[int, int, int]) -> GivenLogits:
    vocabulary = TokenVocabulary(levels=LEVELS, groups=groups)
    return GivenLogits(dense[:, : vocabulary.num_logits].contiguous().view(1, *grid, -1), vocabulary)


def amused(dense: Tensor, grid: tuple[int, int, int], steps: int) -> Callable[[], Tensor]:
    scheduler, logits, count = AmusedScheduler(mask_token_id=VOCAB), dense[None], math.prod(grid)

    def run() -> Tensor:
        scheduler.set_timesteps(steps)
        sample = torch.full((1, count), VOCAB)
        for t in scheduler.timesteps:
            sample = scheduler.step(logits, int(t), sample).prev_sample
        return sample

    return run


def x_transformers(net: nn.Module, steps: int, filter_thres: float | None) -> Callable[[], Tensor]:
    wrapper = NonAutoregressiveWrapper(net, mask_id=VOCAB, steps=steps, schedule="cosine")
    return lambda: wrapper.generate(filter_thres=filter_thres)


def overhead(bench: _harness.Bench, grid: tuple[int, int, int], steps: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(math.prod(grid), VOCAB, generator=generator)
    arms = {
        "overhead: diffusers": amused(dense, grid, steps),
        "overhead: x-transformers, no filter": x_transformers(GivenDense(dense), steps, None),
        "overhead: x-transformers, filter": x_transformers(GivenDense(dense), steps, 0.7),
        "overhead: ours, dense": ours(given("dense", dense, grid), grid, "confidence", steps),
        "overhead: ours, dense, halton": ours(given("dense", dense, grid), grid, "halton", steps),
        "overhead: ours, balanced": ours(given("balanced", dense, grid), grid, "confidence", steps),
        "overhead: ours, per level": ours(given("per_level", dense, grid), grid, "confidence", steps),
    }
    times = bench.time(arms, rounds=rounds)
    peer = min(seconds for name, seconds in times.items() if "ours" not in name)
    bench.ratio("overhead_dense", peer, times["overhead: ours, dense"])
    bench.ratio("overhead_dense_halton", peer, times["overhead: ours, dense, halton"])
    bench.ratio("overhead_balanced", peer, times["overhead: ours, balanced"])
    bench.ratio("overhead_per_level", peer, times["overhead: ours, per level"])


def end_to_end(
    bench: _harness.Bench, grid: tuple[int, int, int], width: int, depth: int, steps: int, rounds: int
) -> None:
    count, heads = math.prod(grid), width // 64
    decoder = TransformerDecoder(levels=LEVELS, embed_dim=width, num_blocks=depth, num_heads=heads).eval()
    net = TransformerWrapper(
        num_tokens=VOCAB + 1,
        max_seq_len=count,
        attn_layers=Encoder(dim=width, depth=depth, heads=heads, attn_flash=True),
    ).eval()
    arms = {
        "end to end: x-transformers, no filter": x_transformers(net, steps, None),
        "end to end: x-transformers, filter": x_transformers(net, steps, 0.7),
        "end to end: ours": ours(decoder, grid, "halton", steps),
    }
    with torch.no_grad():
        times = bench.time(arms, rounds=rounds)
    peer = min(times["end to end: x-transformers, no filter"], times["end to end: x-transformers, filter"])
    bench.ratio("end_to_end", peer, times["end to end: ours"])
    bench.ratio("end_to_end_filter", times["end to end: x-transformers, filter"], times["end to end: ours"])
    rate = _harness.product_rate(count, width, 4 * width, bench.clock)
    forward = depth * (24 * width**2 * count + 4 * width * count**2)
    head = 2 * count * width * decoder.vocabulary.num_logits
    bench.value("share_of_floor", (steps * forward + head) / rate / times["end to end: ours"])
    tokens = torch.randint(VOCAB, (1, *grid))

    def train_step() -> None:
        every = torch.ones_like(tokens, dtype=torch.bool)
        (-decoder(tokens, every, decoder.prepare(condition())).log_prob(tokens).mean()).backward()
        decoder.zero_grad(set_to_none=True)

    decoder.train()
    took = bench.time({"training step": train_step}, rounds=rounds)["training step"]
    bench.value("train_share_of_floor", 3 * (forward + head) / rate / took)


def main() -> None:
    bench = _harness.start("bench_sampler", __doc__)
    grid, width, depth, steps = ((8, 8, 8), 256, 4, 4) if bench.quick else ((8, 8, 16), 384, 6, 12)
    rounds = 3
    bench.sizes |= {
        "tokens": math.prod(grid),
        "vocabulary": VOCAB,
        "steps": steps,
        "width": width,
        "blocks": depth,
    }
    overhead(bench, grid, steps, 1 if bench.quick else rounds)
    end_to_end(bench, grid, width, depth, steps, rounds)
    bench.report(["prod9", "diffusers", "x-transformers"])


if __name__ == "__main__":
    main()
