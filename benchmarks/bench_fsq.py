"""Finite scalar quantisation against vector-quantize-pytorch: time, and exactness of indices in half precision.

Both quantise the same channels-first latents to codes and indices. ``index_mismatches`` counts our indices that change
when codes are cast to float32, bfloat16 or float16 before they are packed, or under autocast.
"""

from collections.abc import Callable

import _harness
import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer

LEVELS = [8, 8, 8, 6, 5]


def forward_backward(module: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> None:
    z = z.detach().requires_grad_()
    codes, _ = module(z)
    codes.backward(torch.ones_like(codes))


def mismatches(quantizer: FiniteScalarQuantizer, z: Tensor) -> int:
    codes, tokens = quantizer(z)
    changed = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        changed += int((quantizer.codes_to_indices(codes.to(dtype)) != tokens).sum())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed += int((quantizer(z)[1] != tokens).sum())
        changed += int((quantizer.codes_to_indices(codes) != tokens).sum())
    return changed


def main() -> None:
    bench = _harness.start("bench_fsq", __doc__)
    side = 48 if bench.quick else 64
    rounds = 15 if bench.quick else 25
    z = torch.randn(1, len(LEVELS), side, side, side, generator=torch.Generator().manual_seed(0))
    ours, peer = FiniteScalarQuantizer(LEVELS), FSQ(LEVELS, channel_first=True)
    bench.sizes |= {"latent": list(z.shape), "levels": LEVELS}

    with torch.no_grad():
        medians = bench.time(
            {"peer forward": lambda: peer(z), "ours forward": lambda: ours(z)}, rounds=rounds
        )
    bench.ratio("forward", medians["peer forward"], medians["ours forward"])

    arms = {
        "peer fwd+bwd": lambda: forward_backward(peer, z),
        "ours fwd+bwd": lambda: forward_backward(ours, z),
    }
    medians = bench.time(arms, rounds=rounds)
    bench.ratio("forward_backward", medians["peer fwd+bwd"], medians["ours fwd+bwd"])

    compiled_ours, compiled_peer = torch.compile(ours), torch.compile(peer)
    with torch.no_grad():
        arms = {"peer compiled": lambda: compiled_peer(z), "ours compiled": lambda: compiled_ours(z)}
        medians = bench.time(arms, rounds=rounds, warmup=3)
    bench.ratio("forward_compiled", medians["peer compiled"], medians["ours compiled"])

    bench.value("index_mismatches", mismatches(ours, z))
    bench.report(["vector-quantize-pytorch"])


if __name__ == "__main__":
    main()
