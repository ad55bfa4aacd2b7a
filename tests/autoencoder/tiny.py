"""The smallest autoencoders that still have every kind of layer."""

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ

NETWORK = {"num_channels": (8, 16, 16), "num_res_blocks": (1, 2, 1), "norm_num_groups": 4}
LEVELS = (8, 6, 5)


def build(**changes) -> AutoencoderFSQ:
    torch.manual_seed(0)
    return AutoencoderFSQ(**{"levels": LEVELS, **NETWORK, **changes})


def build_monai(**changes) -> AutoencoderKlMaisi:
    torch.manual_seed(0)
    options = {"attention_levels": (False,) * 3, "num_splits": 1, "save_mem": False}
    return AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=len(LEVELS),
        **{**NETWORK, **options, **changes},
    )


def with_weights_of(network: AutoencoderFSQ, peer: AutoencoderKlMaisi) -> AutoencoderFSQ:
    """Copy the peer's weights by name; only the quantiser's own buffers may be missing."""
    shared = {k: v for k, v in peer.state_dict().items() if not k.startswith("quant_conv_log_sigma")}
    result = network.load_state_dict(shared, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == {"quantizer.levels", "quantizer.basis"}
    return network


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
