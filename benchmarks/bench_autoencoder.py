"""AutoencoderFSQ against MONAI's AutoencoderKlMaisi with the same weights: training step and decoding.

A training step is encode, decode, L1, backward. MONAI runs at its best: one split, no memory saving, float32
norm, and its `reconstruct`, which samples nothing; ours quantises on top. Both see the same volume and the
same autocast, except for the `_vs_fp32` keys, which set our bfloat16 against its float32. Ours is laid out
channels-last, as the shipped configurations train.
"""

from collections.abc import Callable

import torch
from _harness import Bench, max_rel_diff, start
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ

LEVELS = (8, 8, 8, 6, 5)
NETWORK = {"num_channels": (16, 32, 64), "num_res_blocks": (2, 2, 2), "norm_num_groups": 16}


def build() -> tuple[AutoencoderFSQ, AutoencoderKlMaisi]:
    """Return both networks with equal weights."""
    torch.manual_seed(0)
    peer = AutoencoderKlMaisi(
        spatial_dims=3, in_channels=1, out_channels=1, attention_levels=(False,) * 3, latent_channels=len(LEVELS),
        num_splits=1, save_mem=False, norm_float16=False, **NETWORK,
    )  # fmt: skip
    ours = AutoencoderFSQ(levels=LEVELS, **NETWORK)
    shared = {k: v for k, v in peer.state_dict().items() if not k.startswith("quant_conv_log_sigma")}
    missing = ours.load_state_dict(shared, strict=False).missing_keys
    assert all(key.startswith("quantizer.") for key in missing), missing
    return ours.to(memory_format=torch.channels_last_3d), peer


def train_step(network: nn.Module, reconstruct: Callable[[Tensor], Tensor], x: Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = (reconstruct(x).float() - x).abs().mean()
    loss.backward()
    network.zero_grad(set_to_none=True)


@torch.no_grad()
def decode(network: AutoencoderFSQ | AutoencoderKlMaisi, z: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return network.decode(z)


def compare(
    bench: Bench, key: str, ours: Callable[[bool], object], peer: Callable[[bool], object], rounds: int
) -> None:
    arms = {
        f"{key} peer fp32": lambda: peer(False),
        f"{key} ours fp32": lambda: ours(False),
        f"{key} peer bf16": lambda: peer(True),
        f"{key} ours bf16": lambda: ours(True),
    }
    medians = list(bench.time(arms, rounds=rounds).values())
    bench.ratio(f"{key}_fp32", medians[0], medians[1])
    bench.ratio(f"{key}_bf16", medians[2], medians[3])
    bench.ratio(f"{key}_bf16_vs_fp32", medians[0], medians[3])


def main() -> None:
    bench = start("bench_autoencoder", __doc__)
    ours, peer = build()
    side = 32 if bench.quick else 64
    rounds = 3 if bench.quick else 5
    x = torch.rand(1, 1, side, side, side)
    bench.sizes |= {"volume": list(x.shape), **NETWORK}

    with torch.no_grad():
        codes = ours.quantize(ours.encode(x))
        z_difference = max_rel_diff(peer.encode(x)[0], ours.encode(x))
        bench.value(
            "max_rel_diff_fp32", max(z_difference, max_rel_diff(peer.decode(codes), ours.decode(codes)))
        )

    compare(
        bench,
        "train_step",
        lambda bf16: train_step(ours, ours.reconstruct, x, bf16),
        lambda bf16: train_step(peer, peer.reconstruct, x, bf16),
        rounds,
    )
    compare(
        bench,
        "decode",
        lambda bf16: decode(ours, codes, bf16),
        lambda bf16: decode(peer, codes, bf16),
        rounds,
    )
    bench.report(["monai"])


if __name__ == "__main__":
    main()
