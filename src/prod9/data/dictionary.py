"""The dictionary transforms that MONAI lacks or does otherwise, and its way into :mod:`prod9.volumes`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as mt
from monai.config import KeysCollection
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor

from prod9 import volumes
from prod9.data.labels import canonical_seg
from prod9.errors import DataError
from prod9.volumes import Channel, VolumeFile

FILENAME = "filename_or_obj"  # MONAI's key for the path of a MetaTensor


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


class LoadVolumesd(mt.MapTransform):
    """Turns paths into float32 MetaTensors [1 H W D]; ``channels`` names the keys that share a 4D file.

    LoadImaged swallows the errors of the reader it is built with and tries its own next, so that a damaged
    file would load after all; a reader handed over at each call is the only one.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._load = mt.LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with each path replaced by its volume."""
        loaded = dict(data)
        keys = list(self.key_iterator(loaded))
        places: dict[str, list[Channel]] = {}
        for key in keys:
            if key in data.get("channels", {}):
                places.setdefault(str(data[key]), []).append(data["channels"][key])
        reader = VolumeReader(places)
        for key in keys:
            loaded[key] = self._load(loaded[key], reader=reader)
        return loaded


class CheckAlignedd(mt.MapTransform):
    """Refuses volumes of a case that do not lie on one voxel grid: prod9 does not register."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` unchanged, or raise a DataError that names both files."""
        first = data[self.keys[0]]
        for key in self.key_iterator(dict(data)):
            volume = data[key]
            if volume.shape != first.shape or not torch.allclose(volume.affine, first.affine, atol=1e-2):
                raise DataError(
                    f"{volume.meta[FILENAME]}: expected the voxel grid of {Path(first.meta[FILENAME]).name} "
                    f"{tuple(first.shape[1:])}, got {tuple(volume.shape[1:])} or another affine; "
                    "register and resample the case to one grid first."
                )
        return dict(data)


class CanonicalSegd(mt.MapTransform):
    """Maps a segmentation's labels from the scheme under ``label_scheme`` to the canonical one."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with canonical labels; DataError when the values don't fit the scheme."""
        mapped = dict(data)
        for key in self.key_iterator(mapped):
            seg = mapped[key]
            labels = canonical_seg(seg.numpy(), mapped["label_scheme"], Path(seg.meta[FILENAME]))
            mapped[key] = convert_to_dst_type(labels, dst=seg, dtype=torch.float32)[0]
        return mapped


class AddForegroundd(mt.MapTransform):
    """Adds the union of the volumes' foreground, found on raw intensities, as ``foreground`` uint8 [1 H W D].

    One box from the union keeps the modalities of a case aligned, and after rescaling the background could
    no longer be told from dark tissue. foreground: raw volume → boolean tensor.
    """

    def __init__(self, keys: KeysCollection, *, foreground: Callable[[Tensor], Tensor]) -> None:
        super().__init__(keys)
        self._foreground = foreground

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the new key; DataError when no voxel is foreground."""
        first = data[self.keys[0]]
        raw = torch.stack([data[key].as_tensor() for key in self.key_iterator(dict(data))])
        union = self._foreground(raw).any(0)
        if not union.any():
            raise DataError(
                f"{Path(first.meta[FILENAME]).parent}: expected a head, got background only; remove the case."
            )
        return {**data, "foreground": convert_to_dst_type(union, dst=first, dtype=torch.uint8)[0]}


class ScaleForegroundPercentilesd(mt.MapTransform):
    """Scales each volume by percentiles of its own voxels that are not 0; MONAI's counts the background too.

    lower, upper: percentiles that become 0 and 1, clipping. The background stays exactly 0.
    """

    def __init__(self, keys: KeysCollection, *, lower: float, upper: float) -> None:
        super().__init__(keys)
        self._percentiles = (lower, upper)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with scaled volumes; DataError for a volume of one intensity."""
        scaled = dict(data)
        for key in self.key_iterator(scaled):
            volume = scaled[key]
            raw = volume.numpy()
            inside = raw != 0
            low, high = np.percentile(raw[inside], self._percentiles) if inside.any() else (0.0, 0.0)
            if not high > low:
                raise DataError(
                    f"{volume.meta[FILENAME]}: expected different intensities inside the head, "
                    f"got {low:g} throughout; remove the case."
                )
            unit = np.where(inside, np.clip((raw - low) / (high - low), 0.0, 1.0), 0.0)
            scaled[key] = convert_to_dst_type(unit, dst=volume, dtype=torch.float32)[0]
        return scaled


def _single(names: Any) -> Any:
    return names[0] if isinstance(names, (tuple, list)) else names
