"""From files to tensors.

The *preprocessing* (reading, head, intensities, spacing, grid; see :mod:`prod9.data.placement`) runs once per case, and
its result is cached. The random transforms (crop, flip, …) are those of MONAI and run on the cached volumes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from monai import transforms as mt
from torch import Tensor

from prod9.data.intensity import IntensityScaling as IntensityScaling
from prod9.data.placement import GridPlacement
from prod9.data.preprocessing import CaseVolumes, Preprocessor, dequantise
from prod9.errors import ConfigError

# To be raised when the same files and options give other voxels than before, so that older caches are not used.
_PREPROCESSING_VERSION = 2
_TURN = 0.1
"""Largest rotation about each axis, in rad."""
_ZOOM = 0.1
"""Largest change of the lengths along each axis, as a share."""
_IMAGE = {"image": "bilinear"}
Window = tuple[slice, ...]
"""A part of a volume, by axis."""


@dataclass(frozen=True)
class Augmentation:
    """Probabilities, per sample, of the training-time transforms."""

    flip_prob: float
    bias_field_prob: float
    gamma_prob: float
    scale_prob: float
    affine_prob: float

    def build_affine(self, keys: Mapping[str, str] = _IMAGE) -> list[mt.Transform]:
        """Return the random rotation (0.1 rad) and zoom (10%), which need a margin around a crop.

        MONAI takes a single number for the first axis alone, so each axis has its own.

        keys: what is moved, all alike → how it is interpolated.
        """
        affine = mt.RandAffined(
            tuple(keys),
            prob=self.affine_prob,
            rotate_range=[_TURN] * 3,
            scale_range=[_ZOOM] * 3,
            mode=tuple(keys.values()),
            padding_mode="zeros",
        )
        return [affine] if self.affine_prob > 0 else []

    def build_flip(self) -> list[mt.Transform]:
        """Return the left-right flip."""
        return [mt.RandFlipd("image", prob=self.flip_prob, spatial_axis=0)] if self.flip_prob > 0 else []

    def build_intensity(self) -> list[mt.Transform]:
        """Return the intensity transforms, all of which keep a value of exactly 0."""
        candidates: list[tuple[float, Callable[[float], mt.Transform]]] = [
            (self.bias_field_prob, lambda p: mt.RandBiasFieldd("image", prob=p, coeff_range=(-0.2, 0.2))),
            (self.gamma_prob, lambda p: mt.RandAdjustContrastd("image", prob=p, gamma=(0.7, 1.5))),
            (self.scale_prob, lambda p: mt.RandScaleIntensityd("image", prob=p, factors=0.1)),
        ]
        return [make(probability) for probability, make in candidates if probability > 0]


class TransformBuilder:
    """Builds the transforms from files to cached volumes and from cached volumes to samples.

    Args:
        spacing: mm to resample to; None keeps that of the file.
        grid: voxels of a whole brain.
        crop_size: voxels of a random training crop of stage 1; None for whole volumes.
        intensity: how raw values become [0, 1].
        augment: probabilities of the random transforms.

    Raises:
        ConfigError: for a ``crop_size`` above the grid.
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
        """Everything but the files that determines the preprocessed voxels, as text for cache keys."""
        parts = {
            "version": _PREPROCESSING_VERSION,
            "spacing": self.placement.spacing,
            "grid": self.placement.grid,
            "intensity": asdict(self.placement.intensity),
        }
        return json.dumps(parts, sort_keys=True)

    def build_preprocessing(self, modalities: Sequence[str]) -> Preprocessor:
        """Return the deterministic part, from a case to its volumes of ``modalities`` on the grid."""
        return Preprocessor(self.placement, modalities)

    def build_stage1_transforms(self, train: bool) -> "Stage1Transform":
        """Return the transform to single-modality samples: augmented crops to train on, or whole volumes."""
        if not train:
            return Stage1Transform(read_size=None, crop=mt.Compose([]), whole=mt.Compose([]))
        affine = self.augment.build_affine()
        rest = [*self.augment.build_flip(), *self.augment.build_intensity(), mt.Lambdad("image", _clip)]
        whole = mt.Compose([*affine, *rest])
        if self.crop_size is None:
            return Stage1Transform(read_size=None, crop=whole, whole=whole)
        if not affine:
            return Stage1Transform(read_size=self.crop_size, crop=whole, whole=whole)
        return Stage1Transform(
            read_size=_affine_room(self.crop_size),
            crop=mt.Compose([*affine, mt.CenterSpatialCropd("image", roi_size=self.crop_size), *rest]),
            whole=whole,
        )

    def build_pair_transforms(self, crop_size: tuple[int, int, int] | None) -> "PairTransform":
        """Return the random change of a soft volume, the scan and its sources, to train on crops or whole volumes."""
        moved = {"image": "bilinear", "region": "nearest"}
        affine = self.augment.build_affine(moved)
        if affine and crop_size is not None:
            affine.append(mt.CenterSpatialCropd(tuple(moved), roi_size=crop_size))
        intensity = self.augment.build_intensity()
        return PairTransform(
            crop_size=crop_size,
            flip_prob=self.augment.flip_prob,
            affine=mt.Compose(affine) if affine else None,
            intensity=mt.Compose([*intensity, mt.Lambdad("image", _clip)]) if intensity else None,
        )

    def build_stage2_transforms(self, modalities: Sequence[str]) -> "Stage2Transform":
        """Return the transform to all-modality samples: whole volumes without augmentation."""
        return Stage2Transform(tuple(modalities))


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage1Transform:
    """Makes one sample [1 H W D] of stage 1 from a cached volume.

    Attributes:
        read_size: voxels to cut out before ``crop``; None always takes whole volumes.
        crop: random transforms of the key ``image`` for cut-outs.
        whole: the same for whole volumes.
    """

    read_size: tuple[int, ...] | None
    crop: mt.Compose
    whole: mt.Compose

    def __call__(
        self, volume: np.ndarray, *, rng: np.random.Generator | None = None, whole: bool = False
    ) -> Tensor:
        """Return float32 [1 H W D] in [0, 1] of ``volume``, uint16 [H W D], quantised.

        ``rng`` is the random stream of the draw; without it, the volume stays as it is. ``whole`` takes no crop.
        """
        if rng is None:
            return dequantise(volume)[None]
        pipeline = self.whole
        if self.read_size is not None and not whole:
            pipeline = self.crop
            volume = crop_around_foreground(volume, self.read_size, rng)
        pipeline.set_random_state(seed=int(rng.integers(2**32)))
        sample = cast(dict[str, Tensor], pipeline({"image": dequantise(volume)[None]}))
        # Without MONAI's metadata, which would slow down every step.
        return sample["image"].as_subclass(Tensor)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Volumes of one patient that belong together.

    Attributes:
        images: float32 ``[C H W D]`` in [0, 1]: what is learnt, and what it is learnt from.
        sources: float32 ``[K H W D]`` in [0, 1]: other scans.
        region: bool ``[1 H W D]``, where something is segmented.
    """

    images: Tensor
    sources: Tensor
    region: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTransform:
    """Crops, mirrors, turns and zooms the volumes of a :class:`Pair` alike, and changes the intensities of its sources.

    Each source is changed by itself, as scanners differ, and what is learnt keeps its intensities.

    Attributes:
        crop_size: voxels of a crop; None takes whole volumes.
        flip_prob: share of samples that are mirrored.
        affine: turns and zooms ``image`` and ``region``, and cuts off the margin; None for neither.
        intensity: changes ``image``, one source; None for no change.
    """

    crop_size: tuple[int, int, int] | None
    flip_prob: float
    affine: mt.Compose | None
    intensity: mt.Compose | None

    def draw(self, sides: Sequence[int], rng: np.random.Generator) -> tuple[Window, Callable[[Pair], Pair]]:
        """Return which part of volumes of ``sides`` voxels to read, and the random change of what is there."""
        flip = bool(rng.random() < self.flip_prob)
        window = self._window(sides, rng)

        def change(pair: Pair) -> Pair:
            """Turn, change the sources of, and mirror what was read."""
            if self.affine is not None:
                pair = self._turned(pair, self.affine, rng)
            if self.intensity is not None:
                pair = replace(pair, sources=_changed_each(pair.sources, self.intensity, rng))
            if not flip:
                return pair
            return Pair(
                images=pair.images.flip(-3), sources=pair.sources.flip(-3), region=pair.region.flip(-3)
            )

        return window, change

    def _window(self, sides: Sequence[int], rng: np.random.Generator) -> Window:
        """Return a random crop, with the margin that turning needs."""
        size = self.crop_size or sides
        if self.crop_size is not None and self.affine is not None:
            size = _affine_room(size)
        lengths = [min(c, side) for c, side in zip(size, sides, strict=True)]
        starts = [int(rng.integers(side - c + 1)) for side, c in zip(sides, lengths, strict=True)]
        return tuple(slice(start, start + c) for start, c in zip(starts, lengths, strict=True))

    def _turned(self, pair: Pair, affine: mt.Compose, rng: np.random.Generator) -> Pair:
        count = len(pair.images)
        affine.set_random_state(seed=int(rng.integers(2**32)))
        volumes = {"image": torch.cat([pair.images, pair.sources]), "region": pair.region.float()}
        made = cast(dict[str, Tensor], affine(volumes))
        # Without MONAI's metadata, which would slow down every step.
        image, region = (made[key].as_subclass(Tensor) for key in volumes)
        return Pair(images=image[:count], sources=image[count:], region=region > 0.5)


def _changed_each(volumes: Tensor, change: mt.Compose, rng: np.random.Generator) -> Tensor:
    """Return ``volumes [K H W D]``, each changed by itself; those that are 0 all over stay so."""
    made = torch.zeros_like(volumes)
    for number, volume in enumerate(volumes):
        change.set_random_state(seed=int(rng.integers(2**32)))
        if volume.any():
            made[number] = cast(dict[str, Tensor], change({"image": volume[None]}))["image"].as_subclass(
                Tensor
            )[0]
    return made


@dataclass(frozen=True)
class Stage2Transform:
    """Makes all-modality samples; ``modalities`` names the channels of the cached volumes."""

    modalities: tuple[str, ...]

    def __call__(self, volumes: CaseVolumes) -> dict[str, Any]:
        """Return ``images`` {modality: float32 [1 H W D]} and, if there is one, ``seg`` int64 [1 H W D]."""
        images = {m: dequantise(volumes.images[i])[None] for i, m in enumerate(self.modalities)}
        if volumes.seg is None:
            return {"images": images}
        return {"images": images, "seg": torch.from_numpy(volumes.seg.astype(np.int64))[None]}


def crop_around_foreground(volume: np.ndarray, size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Return a view of ``size`` voxels of ``volume`` [H W D], centred on a random voxel that is not 0.

    At a border, the crop is moved inwards; an axis shorter than ``size`` is taken completely.
    """
    shape = np.asarray(volume.shape)
    centre = _foreground_voxel(volume, rng)
    length = np.minimum(size, shape)
    corner = np.clip(centre - length // 2, 0, shape - length)
    return volume[tuple(slice(c, c + n) for c, n in zip(corner, length, strict=True))]


def _foreground_voxel(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random voxel that is not 0, or any voxel if all are 0.

    Random tries read a few voxels of a memory-mapped volume instead of all. A head fills about a third of its grid, so
    a search through the whole volume is rarely needed.
    """
    for _ in range(64):
        voxel = rng.integers(volume.shape)
        if volume[tuple(voxel)]:
            return voxel
    found = np.flatnonzero(volume)
    place = rng.choice(found) if found.size else rng.integers(volume.size)
    return np.asarray(np.unravel_index(place, volume.shape))


def _affine_room(size: Sequence[int]) -> tuple[int, ...]:
    """Return the voxels around a crop of ``size`` that a rotation about each axis and a zoom may move into it."""
    return tuple(math.ceil((1 + _ZOOM) * (side + _TURN * (sum(size) - side))) for side in size)


def _clip(image: Tensor) -> Tensor:
    return image.clamp(0.0, 1.0)
