"""Label maps as volumes: a head and the lesion in it, one class a voxel, coded as numbers in [0, 1].

Class 0 is outside of the head, 1 the brain, and 2 and above the labels of a segmentation. As numbers in [0, 1] they
pass through crops, stores and pictures as scans do; an autoencoder of label maps takes the classes out again.
"""

from typing import TypeVar

import numpy as np
from torch import Tensor

from prod9.modalities import LABEL_MAP_CLASSES, MOST_LABELS

BRAIN, FIRST_LABEL = 1, 2
TOP = LABEL_MAP_CLASSES - 1
"""The highest class, coded as 1."""
A = TypeVar("A", Tensor, np.ndarray)


def coded(classes: A) -> A:
    """Return classes of any shape as float32 in [0, 1]."""
    return _float(classes) / TOP  # pyrefly: ignore[bad-return]


def classes_of(volume: A) -> A:
    """Return the classes (int64) nearest to a coded volume of any shape: the inverse of :func:`coded`."""
    rounded = (volume * TOP).round()
    return rounded.long() if isinstance(rounded, Tensor) else rounded.astype(np.int64)  # pyrefly: ignore[bad-return]


def join(labels: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the classes uint8 ``[H W D]`` of labels and a brain (bool); a lesion counts as brain.

    Raises ValueError for labels above :data:`MOST_LABELS`.
    """
    if labels.size and int(labels.max()) > MOST_LABELS:
        raise ValueError(
            f"labels: expected at most {MOST_LABELS}, got {int(labels.max())}; map them to fewer (data.label_scheme)"
        )
    return np.where(labels > 0, labels.astype(np.uint8) + BRAIN, brain).astype(np.uint8)


def labels_in(classes: np.ndarray) -> np.ndarray:
    """Return the labels uint8 of classes: the inverse of :func:`join`, whose brain is ``classes > 0``."""
    return np.where(classes >= FIRST_LABEL, classes - BRAIN, 0).astype(np.uint8)


def _float(classes: A) -> A:
    return classes.float() if isinstance(classes, Tensor) else classes.astype(np.float32)  # pyrefly: ignore[bad-return]
