"""The foreground of a small volume without segmentation: the voxels above Otsu's threshold."""

import numpy as np
import torch
from torch import Tensor

from prod9.data.datasets.medmnist import MedMNIST3DVolumes
from prod9.data.intensity import otsu_threshold
from prod9.data.layouts.medmnist import pad_evenly


def foreground_of_image(image: np.ndarray, *, is_shape: bool = False) -> np.ndarray:
    """Return a mask of ``image`` uint8, True above Otsu's threshold, or above 0 for a binary shape."""
    return image > (0 if is_shape else otsu_threshold(image))


class ForegroundMasks:
    """Masks of one part of a MedMNIST3D file, by the names of the samples, in place of segmentations.

    A sample whose voxels are all equal has no mask. ``is_shape``: the file holds binary shapes.
    """

    def __init__(self, volumes: MedMNIST3DVolumes, *, is_shape: bool) -> None:
        self._volumes = volumes
        self._is_shape = is_shape
        self._index = {name: index for index, name in enumerate(volumes.names)}
        flat = volumes.images.reshape(len(volumes), -1)
        self._has = np.asarray(flat.any(axis=1) if is_shape else flat.min(axis=1) < flat.max(axis=1))

    @property
    def num_segmented(self) -> int:
        """Return how many of the samples have a mask."""
        return int(self._has.sum())

    def has(self, case_id: str) -> bool:
        """Tell whether the sample has a mask."""
        return bool(self._has[self._index[case_id]])

    def __getitem__(self, case_id: str) -> Tensor:
        """Return the mask on the grid, uint8 [H W D]: 1 in the foreground."""
        image = self._volumes.images[self._index[case_id]]
        mask = foreground_of_image(image, is_shape=self._is_shape).astype(np.uint8)
        return torch.from_numpy(pad_evenly(mask, self._volumes.grid))
