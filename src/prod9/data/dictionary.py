"""The way of MONAI's transforms into :mod:`prod9.volumes`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys

from prod9 import volumes
from prod9.volumes import Channel, VolumeFile


class VolumeReader(ImageReader):
    """MONAI reader that leaves the file to :mod:`prod9.volumes`, which notices what MONAI lets pass.

    channels: by path, what to read of a 4D file; one after the other, decompressing it once.
    """

    def __init__(self, channels: Mapping[str, Sequence[Channel]] | None = None) -> None:
        super().__init__()
        self._channels = dict(channels or {})
        self._read: dict[str, list[VolumeFile]] = {}

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Return whether this is the name of a NIfTI file."""
        return str(_single(filename)).endswith((".nii", ".nii.gz"))

    def read(self, data: Sequence[Any] | Any, **_: Any) -> VolumeFile:
        """Read one file, or the next channel of one; DataError as in :func:`prod9.volumes.read`."""
        path = str(_single(data))
        if path not in self._channels:
            return volumes.read(Path(path))
        if path not in self._read:
            self._read[path] = list(volumes.read_channels(Path(path), self._channels[path]).values())
        return self._read[path].pop(0)

    def get_data(self, img: VolumeFile) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the array [H W D] in the file's own axis order and what MONAI wants to know of it."""
        return img.data, {
            MetaKeys.AFFINE: img.header.affine,
            MetaKeys.ORIGINAL_AFFINE: img.header.affine,
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.data.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's sign for "no channel axis"
            MetaKeys.SPACE: SpaceKeys.RAS,
        }


def _single(names: Any) -> Any:
    return names[0] if isinstance(names, (tuple, list)) else names
