"""How the work of each network grows with side, tokens, sources, steps and samples: counted, beside what is expected.

    python benchmarks/scaling.py

The operations are counted, not timed, so the result is the same on every machine. The exponent between two sizes is
log(work ratio) / log(size ratio).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.transformer import TransformerDecoder

LEVELS = (8, 6, 5)
DECODER: dict[str, Any] = {"levels": LEVELS, "embed_dim": 96, "num_blocks": 4, "num_heads": 4}


def flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of ``call``."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def autoencoder(side: int) -> int:
    """Return the work of encoding and decoding a volume."""
    network = AutoencoderFSQ(
        levels=LEVELS, num_channels=(8, 16), num_res_blocks=(1, 1), norm_num_groups=4, space_to_depth=2
    ).eval()
    return flops(lambda: network(torch.rand(1, 1, side, side, side)))


def unet(side: int) -> int:
    """Return the work of one velocity without attention."""
    network = DiffusionModelRF(
        latent_channels=4, num_channels=(16, 32), attention_levels=(False, False), num_head_channels=(0, 0),
        num_res_blocks=1, norm_num_groups=8, num_class_embeds=4,
    ).eval()  # fmt: skip
    condition = FlowCondition.of_heads(torch.ones(1, dtype=torch.int64), torch.ones(1, 3))
    x = torch.rand(1, 4, side, side, side)
    return flops(lambda: network.predict(x, torch.tensor([500.0]), condition))


def decoder(tokens: int, *, batch: int = 1) -> int:
    """Return the work of one prediction of all of ``tokens``."""
    network, side = TransformerDecoder(**DECODER).eval(), round(tokens ** (1 / 3))
    grid = torch.zeros(batch, side, side, side, dtype=torch.int64)
    prepared = network.prepare(MaskGiTCondition(torch.zeros(batch, dtype=torch.int64)))
    return flops(lambda: network(grid, grid == 0, prepared))


def sources(count: int) -> tuple[int, int]:
    """Return the work of preparing ``count`` sources, and of one step with them."""
    network = TransformerDecoderSingleStream(**DECODER).eval()
    labels, latents = torch.arange(count)[None], torch.rand(1, count, 3, 8, 8, 8)
    condition = InContextCondition(torch.tensor([3]), labels, latents)
    grid = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    with torch.no_grad():
        prepared = network.prepare(condition)
    return flops(lambda: network.prepare(condition)), flops(lambda: network(grid, grid == 0, prepared))


def sampling(steps: int) -> int:
    """Return the work of a sample."""
    network = TransformerDecoder(**DECODER).eval()
    sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=steps, order="halton")
    condition, generator = MaskGiTCondition(torch.tensor([0])), torch.Generator().manual_seed(0)
    return flops(lambda: sampler.sample(network, (1, 6, 6, 6), condition, generator))


def rows() -> list[tuple[str, str, int, int, int, int]]:
    """Return (what, expected exponent, smaller and larger size, work of both)."""
    prepared = [sources(1), sources(3)]
    return [
        ("autoencoder, side", "3", 16, 32, autoencoder(16), autoencoder(32)),
        ("U-Net of a flow, side", "3", 8, 16, unet(8), unet(16)),
        ("decoder, few tokens", "1", 64, 512, decoder(64), decoder(512)),
        ("decoder, many tokens", "up to 2", 4096, 13824, decoder(4096), decoder(13824)),
        ("preparing sources", "1 to 2", 1, 3, prepared[0][0], prepared[1][0]),
        ("step with sources", "below 1", 1, 3, prepared[0][1], prepared[1][1]),
        ("sample, steps", "1", 4, 16, sampling(4), sampling(16)),
        ("samples of a batch", "1", 1, 4, decoder(512), decoder(512, batch=4)),
    ]


def main() -> None:
    """Print the table."""
    print("| what grows | from | to | GFLOP | GFLOP | exponent | expected |\n|---|---|---|---|---|---|---|")
    for what, expected, small, large, one, two in rows():
        exponent = math.log(two / one) / math.log(large / small)
        print(
            f"| {what} | {small} | {large} | {one / 1e9:.3f} | {two / 1e9:.3f} | {exponent:.2f} | {expected} |"
        )


if __name__ == "__main__":
    main()
