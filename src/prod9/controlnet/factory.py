"""Control networks of the flow by the ``kind`` of a configuration."""

from typing import Any

from prod9.controlnet.controlnet_model import ControlNetRF

CONTROL_NETWORKS: dict[str, type[ControlNetRF]] = {"controlnet_rf": ControlNetRF}


def build_control_network(kind: str, **kwargs: Any) -> ControlNetRF:
    """Return the network of ``kind`` built with ``kwargs``: its model section, its condition, its base's sizes."""
    if kind not in CONTROL_NETWORKS:
        raise ValueError(f"kind must be one of {', '.join(sorted(CONTROL_NETWORKS))}, got {kind!r}.")
    return CONTROL_NETWORKS[kind](**kwargs)
