"""What pipelines take from the header of a checkpoint: its config, and the grid of its volumes."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from prod9.config.load import config_from_dict
from prod9.config.schema import RunConfig
from prod9.config.sections import RunSection
from prod9.errors import CheckpointError
from prod9.models.checkpoint_manager import Loaded
from prod9.pipelines.labels import VolumeGrid
from prod9.pipelines.placement import GridPlacement

SAMPLING = frozenset({"control", "sampler", "masking", "flow", "sliding_window"})
"""Sections of a config that decide what is sampled, where it has them."""
Overrides = Sequence[str | tuple[str, Any]]
"""Changes to a config as ``load_config`` takes them, e.g. ``["sampler.steps=8", ("sampler.top_p", 0.9)]``."""
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
    config = config_from_dict(loaded.header["config"], source=str(loaded.path), overrides=overrides)
    if not isinstance(config, kind):
        raise CheckpointError(
            f"{loaded.path}: expected a config of stage {loaded.header['stage']} in the header, got stage "
            f"{config.stage}; use another checkpoint of the run, or copy the file again."
        )
    if settings is None:
        return config
    shared = SAMPLING & type(config).model_fields.keys() & type(settings).model_fields.keys()
    return config.model_copy(update={name: getattr(settings, name) for name in shared})


def grid_of(loaded: Loaded[Any]) -> VolumeGrid:
    """Return what a model generates, from the ``data`` part of its header."""
    data = loaded.header["data"]
    return {
        "label_map": data["label_map"],
        "grid": tuple(data["grid"]),
        "affine": np.asarray(data["reference_affine"]),
        "placement": GridPlacement.from_header(data),
    }
