"""From files to tensors.

What is the same in every draw (reading, head, intensities, spacing, grid) is the *preprocessing*, for which all go
to :mod:`prod9.data.placement`: it runs once per case and its result is cached. What differs from draw to draw
(random crop, flip, …) are MONAI's transforms, and runs on the cache.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai import transforms as mt
from torch import Tensor

from prod9.data.dictionary import VolumeReader as VolumeReader
from prod9.data.intensity import IntensityScaling as IntensityScaling
from prod9.data.labels import canonical_seg
from prod9.data.placement import GridPlacement, same_grid
from prod9.data.preprocessing import CaseVolumes, dequantise
from prod9.data.window import layers_of
from prod9.errors import ConfigError, DataError
from prod9.volumes import Channel, VolumeFile, read_channels

# Raise it when the same files and options give other voxels than before: older caches are stale then.
_PREPROCESSING_VERSION = 2
# Room around a crop for a rotation by 0.1 rad about each axis and a zoom of 10%: 1.1 · (1 + 2 · 0.1).
_AFFINE_ROOM = 1.32


@dataclass(frozen=True)
class Augmentation:
    """Probabilities, per sample, of the training-time transforms."""

    flip_prob: float
    bias_field_prob: float
    gamma_prob: float
    scale_prob: float
    affine_prob: float

    def build_affine(self) -> list[mt.Transform]:
        """Return the random rotation (0.1 rad) and zoom (10%), which need room around a crop."""
        affine = mt.RandAffined(
            "image", prob=self.affine_prob, rotate_range=0.1, scale_range=0.1, padding_mode="zeros"
        )
        return [affine] if self.affine_prob > 0 else []

    def build_rest(self) -> list[mt.Transform]:
        """Return the left-right flip and the intensity transforms; all leave an exact 0 at 0."""
        candidates: list[tuple[float, Callable[[float], mt.Transform]]] = [
            (self.flip_prob, lambda p: mt.RandFlipd("image", prob=p, spatial_axis=0)),
            (self.bias_field_prob, lambda p: mt.RandBiasFieldd("image", prob=p, coeff_range=(-0.2, 0.2))),
            (self.gamma_prob, lambda p: mt.RandAdjustContrastd("image", prob=p, gamma=(0.7, 1.5))),
            (self.scale_prob, lambda p: mt.RandScaleIntensityd("image", prob=p, factors=0.1)),
        ]
        return [make(probability) for probability, make in candidates if probability > 0]


class TransformBuilder:
    """Builds what turns files into cached volumes and cached volumes into samples.

    spacing: mm to resample to, None for the file's. grid: voxels of a whole brain. crop_size: voxels of a
    random training crop of stage 1, None for whole volumes.
    """

    def __init__(
        self,
        *,
        spacing: tuple[float, float, float] | None,
        grid: tuple[int, int, int],
        crop_size: tuple[int, int, int] | None,
        intensity: IntensityScaling,
        augment: Augmentation,
    ) -> None:
        if crop_size is not None and any(c > g for c, g in zip(crop_size, grid, strict=True)):
            raise ConfigError(
                f"data.crop_size: expected at most data.grid {grid} on each axis, got {crop_size}; "
                "use a smaller crop, or null for whole volumes."
            )
        self.placement = GridPlacement(spacing=spacing, grid=grid, intensity=intensity)
        self.crop_size = crop_size
        self.augment = augment

    @property
    def fingerprint(self) -> str:
        """Everything but the files that decides the preprocessed voxels, as text for cache keys."""
        parts = {
            "version": _PREPROCESSING_VERSION,
            "spacing": self.placement.spacing,
            "grid": self.placement.grid,
            "intensity": asdict(self.placement.intensity),
        }
        return json.dumps(parts, sort_keys=True)

    def build_preprocessing(self, modalities: Sequence[str]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Return the deterministic part: a dictionary of paths in, volumes on the grid out.

        Keys that go in: the modalities, ``label_scheme``, and where there is such, ``seg`` and ``channels`` (key to
        its place in a 4D file). Out: MetaTensors [1 H W D] of the modalities and ``seg``, and ``placed``, the
        :class:`~prod9.data.placement.Placed` that they come from. A file that cannot be used raises DataError.
        """
        return Preprocessing(self.placement, tuple(modalities))

    def build_stage1_transforms(self, train: bool) -> "Stage1Transform":
        """Return what makes single-modality samples: augmented crops to train, whole volumes otherwise."""
        if not train:
            return Stage1Transform(read_size=None, crop=mt.Compose([]), whole=mt.Compose([]))
        affine, rest = self.augment.build_affine(), [*self.augment.build_rest(), mt.Lambdad("image", _clip)]
        whole = mt.Compose([*affine, *rest])
        if self.crop_size is None:
            return Stage1Transform(read_size=None, crop=whole, whole=whole)
        if not affine:
            return Stage1Transform(read_size=self.crop_size, crop=whole, whole=whole)
        return Stage1Transform(
            read_size=tuple(math.ceil(n * _AFFINE_ROOM) for n in self.crop_size),
            crop=mt.Compose([*affine, mt.CenterSpatialCropd("image", roi_size=self.crop_size), *rest]),
            whole=whole,
        )

    def build_stage2_transforms(self, modalities: Sequence[str]) -> "Stage2Transform":
        """Return what makes all-modality samples: whole volumes, not augmented (token stores hold flips)."""
        return Stage2Transform(tuple(modalities))


class Stage1Transform:
    """Makes one sample [1 H W D] of stage 1 from a cached volume.

    read_size: voxels to cut out before ``crop``, None to take whole volumes throughout. crop, whole: random
    transforms of ``image`` for cut-outs and for whole volumes.
    """

    def __init__(self, *, read_size: tuple[int, ...] | None, crop: mt.Compose, whole: mt.Compose) -> None:
        self._read_size = read_size
        self._crop = crop
        self._whole = whole

    def __call__(
        self, volume: np.ndarray, *, rng: np.random.Generator | None = None, whole: bool = False
    ) -> Tensor:
        """Return float32 [1 H W D] in [0, 1].

        volume: uint16 [H W D], quantised. rng: random stream of the draw; None gives the volume as it is.
        whole: the whole volume though crops are the rule.
        """
        if rng is None:
            return dequantise(volume)[None]
        pipeline = self._whole
        if self._read_size is not None and not whole:
            pipeline = self._crop
            volume = crop_around_foreground(volume, self._read_size, rng)
        pipeline.set_random_state(seed=int(rng.integers(2**32)))
        sample = cast(dict[str, Tensor], pipeline({"image": dequantise(volume)[None]}))
        return sample["image"].as_subclass(
            Tensor
        )  # without MONAI's metadata, which would slow down every step


@dataclass(frozen=True)
class Stage2Transform:
    """Makes all-modality samples; ``modalities`` names the channels of the cached volumes."""

    modalities: tuple[str, ...]

    def __call__(self, volumes: CaseVolumes) -> dict[str, Any]:
        """Return ``images`` {modality: float32 [1 H W D]} and, where there is one, ``seg`` int64 [1 H W D]."""
        images = {m: dequantise(volumes.images[i])[None] for i, m in enumerate(self.modalities)}
        if volumes.seg is None:
            return {"images": images}
        return {"images": images, "seg": torch.from_numpy(volumes.seg.astype(np.int64))[None]}


@dataclass(frozen=True)
class Preprocessing:
    """Reads the files of a case and places them; see :meth:`TransformBuilder.build_preprocessing`."""

    placement: GridPlacement
    modalities: tuple[str, ...]

    def __call__(self, paths: Mapping[str, Any]) -> dict[str, Any]:
        """Return the volumes of a case on the grid; DataError for files that cannot be used."""
        files = _read_files(paths, [*self.modalities, *(["seg"] if "seg" in paths else [])])
        first = files[self.modalities[0]].header
        for file in files.values():
            if not same_grid(file.header, first):
                raise DataError(
                    f"{file.header.path}: expected the voxel grid of {first.path.name} {first.shape}, got "
                    f"{file.header.shape} or another affine; register and resample the case to one grid first."
                )
        seg = files.pop("seg", None)
        if not any(file.data.any() for file in files.values()):
            raise DataError(f"{first.path.parent}: expected a head, got background only; remove the case.")
        if seg is not None:
            labels = canonical_seg(seg.data, paths["label_scheme"], seg.header.path)
            seg = VolumeFile(labels, seg.header)
        placed = self.placement.place(files, seg=seg)
        volumes = placed.images if placed.seg is None else {**placed.images, "seg": placed.seg}
        tensors = {name: layers_of(volume[None], placed.affine) for name, volume in volumes.items()}
        return {**paths, **tensors, "placed": placed}


def _read_files(paths: Mapping[str, Any], names: Sequence[str]) -> dict[str, VolumeFile]:
    """Return the volumes of ``names``; a 4D file that holds several of them is decompressed once."""
    channels: Mapping[str, Channel] = paths.get("channels", {})
    by_path: dict[str, list[str]] = {}
    for name in names:
        by_path.setdefault(str(paths[name]), []).append(name)
    files: dict[str, VolumeFile] = {}
    for path, held in by_path.items():
        read = read_channels(Path(path), [channels.get(name) for name in held])
        files |= {name: read[channels.get(name)] for name in held}
    return {name: files[name] for name in names}


def crop_around_foreground(volume: np.ndarray, size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Return a view of ``size`` voxels of ``volume`` [H W D], centred on a random voxel that is not 0.

    The crop moves inwards where it would stick out, and an axis shorter than ``size`` comes whole.
    """
    shape = np.asarray(volume.shape)
    centre = _foreground_voxel(volume, rng)
    length = np.minimum(size, shape)
    corner = np.clip(centre - length // 2, 0, shape - length)
    return volume[tuple(slice(c, c + n) for c, n in zip(corner, length, strict=True))]


def _foreground_voxel(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random voxel that is not 0, or any voxel where all are 0.

    Rejection reads a few voxels of a memory-mapped volume instead of all of them; a head fills a third of its
    grid, so a search through the whole volume is left for odd ones.
    """
    for _ in range(64):
        voxel = rng.integers(volume.shape)
        if volume[tuple(voxel)]:
            return voxel
    found = np.flatnonzero(volume)
    place = rng.choice(found) if found.size else rng.integers(volume.size)
    return np.asarray(np.unravel_index(place, volume.shape))


def _clip(image: Tensor) -> Tensor:
    return image.clamp(0.0, 1.0)
