"""MedMNIST3D datasets: one small volume with its class label per sample.

Keys are as in :mod:`prod9.data.datasets.brats`: an ``int`` to evaluate, a SampleKey to train.
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
    """One part of a file in memory.

    Attributes:
        images: uint8 [N S S S].
        labels: int64 [N].
        names: of the samples.
        classes: names of the labels.
        grid: voxels of a padded sample.
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
        """Return one sample on the grid, uint16, quantised like preprocessed cases."""
        return padded(self.images[index], self.grid)

    def class_name(self, index: int) -> str:
        """Return the name of a sample's class."""
        return self.classes[int(self.labels[index])]


@dataclass(kw_only=True, eq=False, repr=False)
class CachedMedMNIST3DStage1Dataset(Dataset[dict[str, Any]]):
    """Volumes for stage 1, in memory that is shared with loader processes which are forked later."""

    volumes: MedMNIST3DVolumes
    transform: Stage1Transform
    seed: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.volumes)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``image`` float32 [1 H W D], ``label`` int64 scalar, ``modality`` (the class), ``case_id``."""
        index = index_of(key)
        if isinstance(key, SampleKey):
            image = self.transform(self.volumes[index], rng=key.rng(self.seed), whole=key.whole)
        else:
            image = self.transform(self.volumes[index])
        return {
            "image": image,
            "label": torch.tensor(int(self.volumes.labels[index])),
            "modality": self.volumes.class_name(index),
            "case_id": self.volumes.names[index],
        }


class MedMNIST3DStage2Dataset(LabelledTokens):
    """Tokens and class label of each volume, for a label-conditional transformer."""
