"""Builds the control network of a diffusion network."""

from typing import Any

from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.diffusion_model import UNetOptions


def build_control_network(base: Any, *, latent_channels: int, **own: Any) -> ControlNetRF:
    """Return a control network that has the shape of ``base``.

    base: has the other options of :class:`UNetOptions` as attributes, like the model section of the diffusion network.
    own: keywords of :class:`ControlNetRF` itself.
    """
    shared = {name: getattr(base, name) for name in UNetOptions.__annotations__ if name != "latent_channels"}
    return ControlNetRF(latent_channels=latent_channels, **shared, **own)
