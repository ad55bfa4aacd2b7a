"""The settings of a sampler that a search tries, and how many of them in how many rounds."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prod9.config.schema import RectifiedFlowSamplerConfig, SamplerConfig
from prod9.stages import Family

Changes = dict[str, Any]
"""Keys of the section ``sampler`` and their values."""
Axes = Mapping[str, Sequence[Any]]

AUTOGUIDANCE = (0.0, 0.5, 1.0, 2.0)
AXES: Mapping[Family, Axes] = {
    "maskgit": {
        "steps": (8, 16, 32, 48),
        "order": ("halton", "random", "confidence"),
        "scheduler": ("cosine", "arccos", "linear"),
        "temperature": (0.9, 1.0, 1.1, 1.2),
        "guidance_scale": (0.0, 0.5, 1.0),
    },
    "maisi": {
        "steps": (4, 10, 20, 30),
        "solver": ("euler", "heun"),
        "guidance_scale": (0.0, 1.0, 2.0, 4.0),
        "guidance_interval": ((0.0, 1.0), (0.25, 0.75)),
    },
}
"""What is tried of each family; ``AUTOGUIDANCE`` too where there is a weak model. The grid is their product."""
SHARES = (0.25, 0.5, 1.0)
"""The share of the volumes that each round draws of a setting; half of the settings go on to the next round."""

Section = SamplerConfig | RectifiedFlowSamplerConfig


def draw_candidates(
    own: Section, *, family: Family, autoguided: bool, count: int, seed: int
) -> list[Changes]:
    """Return at most ``count`` different settings: the model's own first, then points of the grid in random order.

    A later setting does not depend on ``count``.

    Args:
        own: the sampler of the model.
        family: whose grid.
        autoguided: whether there is a weak model.
        count: how many at most.
        seed: of the order.
    """
    axes = dict(AXES[family]) | ({"autoguidance_scale": AUTOGUIDANCE} if autoguided else {})
    points = [_plain(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    order = np.random.default_rng(seed).permutation(len(points))
    first = _plain({name: getattr(own, name) for name in axes})
    return [first, *(points[i] for i in order if points[i] != first)][:count]


def with_changes(own: Section, changes: Changes) -> Section:
    """Return the section with the values of ``changes``, checked."""
    return type(own).model_validate({**own.model_dump(), **changes})


def kept_after(round_number: int, count: int) -> int:
    """Return how many of ``count`` settings of a round go on to the next one; all of the last round stay."""
    return count if round_number == len(SHARES) - 1 else max(2, math.ceil(count / 2))


def volumes_of(round_number: int, volumes: int) -> int:
    """Return how many volumes per label a round draws where the last one draws ``volumes``: even, for pairs."""
    return max(2, 2 * math.ceil(SHARES[round_number] * volumes / 2))


def planned(costs: Sequence[float], volumes: int) -> float:
    """Return the cost of a search at most, where drawing one volume with each of the settings costs ``costs``.

    volumes: of the last round, over all labels as in ``costs``.
    """
    total, left = 0.0, sorted(costs, reverse=True)
    for number in range(len(SHARES)):
        total += sum(left) * volumes_of(number, volumes)
        left = left[: kept_after(number, len(left))]
    return total


def affordable(costs: Sequence[float], volumes: int, budget: float) -> int:
    """Return how many of the first settings a search within ``budget`` can try; see :func:`planned`."""
    count = 0
    while count < len(costs) and planned(costs[: count + 1], volumes) <= budget:
        count += 1
    return count


def _plain(changes: Changes) -> Changes:
    """Return the values as JSON holds them, so that kept ones compare equal."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}
