"""MedMNIST3D datasets: one small volume with its class label a sample.

Keys are those of :mod:`prod9.data.datasets.brats`: an ``int`` to evaluate, a SampleKey to train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from prod9.data.datasets.tokens import LabelledTokens
from prod9.data.layouts.medmnist import padded
from prod9.data.sampling import SampleKey, index_of
from prod9.data.transforms import Stage1Transform


@dataclass(frozen=True, eq=False)
class MedMNIST3DVolumes:
    """One part of a file in memory. images: uint8 [N S S S]. labels: int64 [N]. names: of the samples.

    classes: names of the labels. grid: what samples are padded to.
    """

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    classes: Sequence[str]
    grid: tuple[int, int, int]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one sample on the grid, uint16, quantised as preprocessed cases are."""
        return padded(self.images[index], self.grid)

    def class_name(self, index: int) -> str:
        """Return the name of a sample's class."""
        return self.classes[int(self.labels[index])]


class CachedMedMNIST3DStage1Dataset(Dataset[dict[str, Any]]):
    """Volumes for stage 1. The file is in memory, and loader processes forked later share it."""

    def __init__(self, *, volumes: MedMNIST3DVolumes, transform: Stage1Transform, seed: int) -> None:
        self._volumes = volumes
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._volumes)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``image`` float32 [1 H W D], ``label`` int64 scalar, ``modality`` (the class), ``case_id``."""
        index = index_of(key)
        if isinstance(key, SampleKey):
            image = self._transform(self._volumes[index], rng=key.rng(self._seed), whole=key.whole)
        else:
            image = self._transform(self._volumes[index])
        return {
            "image": image,
            "label": torch.tensor(int(self._volumes.labels[index])),
            "modality": self._volumes.class_name(index),
            "case_id": self._volumes.names[index],
        }


class MedMNIST3DStage2Dataset(LabelledTokens):
    """Tokens and class label of each volume, for a label-conditional transformer."""
