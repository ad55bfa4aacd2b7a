"""What is measured of a lesion in a label map: its size and its place, as covariates of a generator of masks."""

import math
from collections.abc import Mapping

import numpy as np
import scipy.ndimage as ndi

from prod9.label_maps import FIRST_LABEL

DIAMETER = "diameter_mm"
"""The number that tells the size of a lesion."""
SIDE = "right"
"""The number that tells left (below one half) from right."""


def measure(classes: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Return the covariates of the lesion in classes ``[H W D]``, axes along RAS; without one only a diameter of 0.

    ``diameter_mm`` is that of a ball of the lesion's volume. ``right``, ``front`` and ``up`` are the lesion's centre in
    the box of the brain, from 0 (left, back, bottom) to 1.

    spacing: mm of a voxel along each axis.

    Example:
        >>> import numpy as np
        >>> from prod9.data.label_covariates import measure
        >>> classes = np.ones((10, 10, 10), np.uint8)
        >>> classes[:2, 4:6, 8:] = 2
        >>> {name: round(value, 2) for name, value in measure(classes, np.ones(3)).items()}
        {'diameter_mm': 2.48, 'right': 0.1, 'front': 0.5, 'up': 0.9}
    """
    lesion = classes >= FIRST_LABEL
    if not lesion.any():
        return {DIAMETER: 0.0}
    box = ndi.find_objects((classes > 0).astype(np.uint8))[0]
    boxed = lesion[box]
    centre = (np.asarray(ndi.center_of_mass(boxed)) + 0.5) / boxed.shape
    found = dict(zip((SIDE, "front", "up"), (float(value) for value in centre), strict=True))
    return {DIAMETER: diameter_of(float(lesion.sum() * np.prod(spacing)) / 1000), **found}


def mirrored(values: Mapping[str, float]) -> dict[str, float]:
    """Return the covariates of the mirror image: left and right exchanged."""
    return {name: 1 - value if name == SIDE else value for name, value in values.items()}


def diameter_of(ml: float) -> float:
    """Return the diameter in mm of a ball of a volume in ml."""
    return 2 * (3000 * ml / (4 * math.pi)) ** (1 / 3)


def ml_of(diameter_mm: float) -> float:
    """Return the volume in ml of a ball of a diameter in mm."""
    return math.pi * diameter_mm**3 / 6000
