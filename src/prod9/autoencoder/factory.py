"""Stage-1 networks by the ``kind`` of a configuration."""

from typing import Any

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.checks import require_choice

AUTOENCODERS: dict[str, type[AutoencoderFSQ] | type[AutoencoderKlMaisi]] = {
    "fsq": AutoencoderFSQ,
    "kl": AutoencoderKlMaisi,
}


def build_autoencoder(kind: str, **kwargs: Any) -> AutoencoderFSQ | AutoencoderKlMaisi:
    """Return the network of ``kind`` built with ``kwargs``, the fields of its model section."""
    require_choice("kind", kind, AUTOENCODERS)
    return AUTOENCODERS[kind](**kwargs)
