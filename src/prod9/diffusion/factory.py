"""Diffusion networks by the ``kind`` of a configuration."""

from typing import Any

from prod9.diffusion.diffusion_model import DiffusionModelRF

DIFFUSION_MODELS: dict[str, type[DiffusionModelRF]] = {"rectified_flow": DiffusionModelRF}


def build_diffusion_model(kind: str, **kwargs: Any) -> DiffusionModelRF:
    """Return the network of ``kind`` built with ``kwargs``, the fields of its model section."""
    if kind not in DIFFUSION_MODELS:
        raise ValueError(f"kind must be one of {', '.join(sorted(DIFFUSION_MODELS))}, got {kind!r}.")
    return DIFFUSION_MODELS[kind](**kwargs)
