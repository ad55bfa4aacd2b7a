"""The cost of control per sampling step, and a proof that an untrained control network changes nothing.

``step_cost_over_base``: time of a step under control over that of the base alone, both for the rows that a step
reveals; the condition is encoded once per sample, outside of the step. ``encode_over_step``: time of that encoding over
a step of the base. ``zero_init_max_abs_diff``: largest difference of the logits at initialisation, which is 0.

    python benchmarks/bench_control.py [--quick] [--threads N]
"""

import _harness
import torch

from prod9.generator.branches import apply_control
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.controlnet_maskgit import ControlCondition, ControlNetMaskGiT
from prod9.generator.transformer import TransformerDecoder

LEVELS = (8, 8, 8, 6, 5)
FACTOR = 4


def networks(
    width: int, blocks: int, patch_size: int
) -> tuple[TransformerDecoder, ControlNetMaskGiT, ControlNetMaskGiT]:
    """Return a base with random weights, its untrained control network, and one that adds something."""
    generator = torch.Generator().manual_seed(0)
    base = TransformerDecoder(
        levels=LEVELS, embed_dim=width, num_blocks=blocks, num_heads=width // 64, patch_size=patch_size
    )
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    base.eval().requires_grad_(False)
    fresh, trained = (
        ControlNetMaskGiT(base=base, downsampling_factor=FACTOR, num_labels=4).eval() for _ in range(2)
    )
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return base, fresh, trained


@torch.no_grad()
def main() -> None:
    bench = _harness.start("bench_control", __doc__)
    grid, width, blocks = ((8, 8, 8), 256, 6) if bench.quick else ((16, 16, 16), 384, 12)
    patch_size, rounds, reveal = 1, (9 if bench.quick else 5), 24
    base, fresh, trained = networks(width, blocks, patch_size)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(15360, (1, *grid), generator=generator)
    mask = torch.rand(1, *grid, generator=generator) < 0.5
    rows = mask.flatten().nonzero()[:, 0][::reveal]
    prepared = base.prepare(MaskGiTCondition(label=torch.zeros(1, dtype=torch.int64)))
    seg = torch.randint(4, (1, *(side * FACTOR for side in grid)), generator=generator).to(torch.uint8)
    condition = ControlCondition(seg, torch.zeros(1, dtype=torch.int64))
    control = trained.encode(condition)

    def alone() -> torch.Tensor:
        return base(tokens, mask, prepared, rows=rows).values

    def controlled(network: ControlNetMaskGiT) -> torch.Tensor:
        output = network(tokens, mask, prepared, control, rows=rows)
        return apply_control(base, output, tokens, mask, prepared, rows).values

    arms = {
        "base step": alone,
        "controlled step": lambda: controlled(trained),
        "encode": lambda: trained.encode(condition),
    }
    seconds = bench.time(arms, rounds=rounds, warmup=2)
    bench.value("step_cost_over_base", seconds["controlled step"] / seconds["base step"])
    bench.value("encode_over_step", seconds["encode"] / seconds["base step"])
    bench.value("zero_init_max_abs_diff", float((controlled(fresh) - alone()).abs().max()))
    bench.sizes |= {
        "tokens": tokens.numel(),
        "voxels": seg.numel(),
        "width": width,
        "blocks": blocks,
        "parameters_base": sum(p.numel() for p in base.parameters()),
        "parameters_control": sum(p.numel() for p in fresh.parameters()),
    }
    bench.report(["prod9"])


if __name__ == "__main__":
    main()
