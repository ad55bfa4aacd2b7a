"""AutoencoderFSQ against MONAI's AutoencoderKlMaisi with the same weights: training step and decoding.

A training step is encode, decode, L1, backward. MONAI runs at its best: one split, no memory saving, float32
norm, and its `reconstruct`, which samples nothing; ours quantises on top. Both see the same volume and the
same autocast, except for the `_vs_fp32` keys, which set our bfloat16 against its float32. Ours is laid out
channels-last, as the shipped configurations train.

The sizes are those of training on CPUs: a 32³ crop. Without ``--quick`` follow, under their own names, the
demo's network on its whole brains (``demo_…``; MONAI, which cannot fold voxels into channels, is handed the
folded volume), a 64³ crop (``large_…``), where both spend most of the time inside the same convolutions, and the
decoder of NVIDIA's released autoencoders at 64³ (``released_…``), random weights.
"""

from collections.abc import Callable
from typing import Any

import _harness
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi as OurAutoencoderKlMaisi
from prod9.autoencoder.backbone import MaisiBackbone
from prod9.autoencoder.native.voxel_folding import fold_voxels

LEVELS = (8, 8, 8, 6, 5)
SMALL = {
    "space_to_depth": 1,
    "num_channels": (16, 32, 64),
    "num_res_blocks": (2, 2, 2),
    "norm_num_groups": 16,
}
RELEASED = {
    "latent_channels": 4,
    "num_channels": (64, 128, 256),
    "num_res_blocks": (2, 2, 2),
    "norm_num_groups": 32,
}
DEMO = {"space_to_depth": 2, "num_channels": (32, 64), "num_res_blocks": (1, 1), "norm_num_groups": 16}


def build(network: dict[str, Any]) -> tuple[AutoencoderFSQ, AutoencoderKlMaisi]:
    """Return both networks with equal weights."""
    torch.manual_seed(0)
    ours = AutoencoderFSQ(levels=LEVELS, **network)
    shared = {k: v for k, v in network.items() if k != "space_to_depth"}
    peer = build_peer(network["space_to_depth"] ** 3, {"latent_channels": len(LEVELS), **shared})
    weights = {k: v for k, v in ours.state_dict().items() if not k.startswith("quantizer.")}
    missing = peer.load_state_dict(weights, strict=False).missing_keys
    assert all(key.startswith("quant_conv_log_sigma.") for key in missing), missing
    return ours.to(memory_format=torch.channels_last_3d), peer


def build_peer(channels: int, network: dict[str, Any]) -> AutoencoderKlMaisi:
    """Return MONAI's network at its best, of ``channels`` channels of volume."""
    return AutoencoderKlMaisi(
        spatial_dims=3, in_channels=channels, out_channels=channels,
        attention_levels=(False,) * len(network["num_channels"]),
        num_splits=1, save_mem=False, norm_float16=False, **network,
    )  # fmt: skip


def train_step(network: nn.Module, reconstruct: Callable[[Tensor], Tensor], x: Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = (reconstruct(x).float() - x).abs().mean()
    loss.backward()
    network.zero_grad(set_to_none=True)


@torch.no_grad()
def decode(network: MaisiBackbone | AutoencoderKlMaisi, z: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return network.decode(z)


def compare(
    bench: _harness.Bench,
    key: str,
    ours: Callable[[bool], object],
    peer: Callable[[bool], object],
    rounds: int,
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


def measure(bench: _harness.Bench, prefix: str, network: dict[str, Any], side: int, rounds: int) -> None:
    ours, peer = build(network)
    n = network["space_to_depth"]
    x = torch.rand(1, 1, side, side, side)
    folded = fold_voxels(x, n)
    bench.sizes[f"{prefix}network"] = {**network, "levels": LEVELS}
    bench.sizes[f"{prefix}volume"] = list(x.shape)

    with torch.no_grad():
        z = ours.encode(x)
        codes = ours.quantize(z)
        differences = (
            _harness.max_rel_diff(peer.encode(folded)[0], z),
            _harness.max_rel_diff(peer.decode(codes), fold_voxels(ours.decode(codes), n)),
        )
    bench.value(f"{prefix}max_rel_diff_fp32", max(differences))
    compare(
        bench,
        f"{prefix}train_step",
        lambda bf16: train_step(ours, ours.reconstruct, x, bf16),
        lambda bf16: train_step(peer, peer.reconstruct, folded, bf16),
        rounds,
    )
    compare(
        bench,
        f"{prefix}decode",
        lambda bf16: decode(ours, codes, bf16),
        lambda bf16: decode(peer, codes, bf16),
        rounds,
    )


def measure_released(bench: _harness.Bench, rounds: int) -> None:
    ours = OurAutoencoderKlMaisi(**RELEASED)
    peer = build_peer(1, RELEASED)
    peer.load_state_dict(ours.state_dict())
    ours = ours.to(memory_format=torch.channels_last_3d)
    z = torch.randn(1, RELEASED["latent_channels"], 16, 16, 16)
    bench.sizes["released_network"] = RELEASED
    with torch.no_grad():
        bench.sizes["released_volume"] = list(ours.decode(z).shape)
        bench.value("released_max_rel_diff_fp32", _harness.max_rel_diff(peer.decode(z), ours.decode(z)))
    compare(
        bench,
        "released_decode",
        lambda bf16: decode(ours, z, bf16),
        lambda bf16: decode(peer, z, bf16),
        rounds,
    )


def main() -> None:
    bench = _harness.start("bench_autoencoder", __doc__)
    measure(bench, "", SMALL, side=32, rounds=3 if bench.quick else 7)
    if not bench.quick:
        measure(bench, "demo_", DEMO, side=48, rounds=5)
        measure(bench, "large_", SMALL, side=64, rounds=3)
        measure_released(bench, rounds=5)
    bench.report(["monai"])


if __name__ == "__main__":
    main()
