"""What pipelines take from the header of a checkpoint: its config, and the grid of its volumes."""

from typing import Any, TypeVar

import numpy as np
import torch

from prod9.config.load import Overrides as Overrides
from prod9.config.schema import MaisiDiffusionConfig, RunConfig, TransformerConfig
from prod9.config.sections import RunSection
from prod9.models.checkpoint_header import Loaded, N, recorded_config
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.labels import VolumeGrid
from prod9.pipelines.placement import GridPlacement

SAMPLING = frozenset({"control", "distillation", "sampler", "start", "masking", "flow", "sliding_window"})
"""Sections of a config that decide what is sampled, where it has them."""
C = TypeVar("C", bound=RunSection)


def config_of(
    loaded: Loaded[Any],
    kind: type[C],
    *,
    overrides: Overrides = (),
    settings: RunConfig | None = None,
) -> C:
    """Return the config that a checkpoint records.

    Args:
        loaded: the checkpoint.
        kind: the class of its config.
        overrides: changes to it.
        settings: a checked config whose sampling sections take the place of the recorded ones.
    """
    config = recorded_config(loaded, kind, overrides=overrides)
    if settings is None:
        return config
    shared = SAMPLING & kind.model_fields.keys() & type(settings).model_fields.keys()
    return config.model_copy(update={name: getattr(settings, name) for name in shared})


def weak_of(
    loaded: Loaded[N], config: TransformerConfig | MaisiDiffusionConfig, device: str | torch.device
) -> Loaded[N] | None:
    """Return the weaker network that ``config.sampler`` guides ``loaded`` by; None without autoguidance."""
    sampler = config.sampler
    if sampler.autoguidance_scale == 0:
        return None
    return CheckpointManager.load_weak(loaded, sampler.weak_model, device=device)


def hash_of(weak: Loaded[Any] | None) -> dict[str, str]:
    """Return what the record of a pipeline's networks says of the weaker one; nothing where there is none."""
    return {} if weak is None else {"weak": weak.sha256}


def grid_of(loaded: Loaded[Any]) -> VolumeGrid:
    """Return what a model generates, from the ``data`` part of its header."""
    data = loaded.header["data"]
    return {
        "label_map": data["label_map"],
        "grid": tuple(data["grid"]),
        "affine": np.asarray(data["reference_affine"]),
        "placement": GridPlacement.from_header(data),
    }
