"""From files to tensors, out of MONAI's dictionary transforms.

What is the same in every draw (reading, orientation, spacing, crop, intensity, grid) is the *preprocessing*:
it runs once a case and its result is cached. What differs by draw (random crop, flip, …) runs on the cache.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Literal, cast

import numpy as np
import torch
from monai import transforms as mt
from torch import Tensor

from prod9.data.dictionary import (
    AddForegroundd,
    CanonicalSegd,
    CheckAlignedd,
    LoadVolumesd,
    ScaleForegroundPercentilesd,
)
from prod9.data.dictionary import VolumeReader as VolumeReader
from prod9.data.preprocessing import CaseVolumes, dequantise
from prod9.errors import ConfigError

# Raise it when the same files and options give other voxels than before: older caches are stale then.
_PREPROCESSING_VERSION = 1
# Room around a crop for a rotation by 0.1 rad about each axis and a zoom of 10%: 1.1 · (1 + 2 · 0.1).
_AFFINE_ROOM = 1.32


@dataclass(frozen=True)
class IntensityScaling:
    """How raw intensities become [0, 1].

    ``percentile``: the percentiles ``lower`` and ``upper`` of each volume's foreground (voxels that are not
    exactly 0) become 0 and 1, and the background is exactly 0. ``range``: the raw values ``lower`` and
    ``upper`` become 0 and 1, and the foreground is what lies above ``lower``. Both clip.
    """

    mode: Literal["percentile", "range"]
    lower: float
    upper: float

    def foreground(self, raw: Tensor) -> Tensor:
        """Return True where a raw intensity belongs to the head."""
        return raw != 0 if self.mode == "percentile" else raw > self.lower

    def build(self, keys: Sequence[str]) -> mt.Transform:
        """Return the dictionary transform."""
        if self.mode == "percentile":
            return ScaleForegroundPercentilesd(keys, lower=self.lower, upper=self.upper)
        return mt.ScaleIntensityRanged(keys, self.lower, self.upper, b_min=0.0, b_max=1.0, clip=True)


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
        self.spacing = spacing
        self.grid = grid
        self.crop_size = crop_size
        self.intensity = intensity
        self.augment = augment

    @property
    def fingerprint(self) -> str:
        """Everything but the files that decides the preprocessed voxels, as text for cache keys."""
        parts = {
            "version": _PREPROCESSING_VERSION,
            "spacing": self.spacing,
            "grid": self.grid,
            "intensity": asdict(self.intensity),
        }
        return json.dumps(parts, sort_keys=True)

    def build_preprocessing(
        self, modalities: Sequence[str]
    ) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """Return the deterministic part: a dictionary of paths in, MetaTensors [1 H W D] on the grid out.

        Keys: the modalities, ``label_scheme`` and, where there is one, ``seg``.
        """
        images = list(modalities)
        keys = [*images, "seg"]
        steps: list[Callable[[Any], Any]] = [
            LoadVolumesd(keys, allow_missing_keys=True),
            CheckAlignedd(keys, allow_missing_keys=True),
            CanonicalSegd("seg", allow_missing_keys=True),
            self.build_placement(modalities),
        ]
        return _Chain(tuple(steps))

    def build_placement(
        self, modalities: Sequence[str], *, crop: bool = True
    ) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """Return the part after reading: MetaTensors [1 H W D] of one voxel grid in, on the model's grid out.

        Keys: the modalities and, where there is one, ``seg``, whose labels stay as they are. crop: to the foreground
        first; False keeps the field of view.
        """
        images = list(modalities)
        keys = [*images, "seg"]
        steps: list[Callable[[Any], Any]] = [
            mt.Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True)
        ]
        if self.spacing is not None:
            modes = ["bilinear"] * len(images) + ["nearest"]
            steps.append(mt.Spacingd(keys, pixdim=self.spacing, mode=modes, allow_missing_keys=True))
        if crop:
            steps += [
                AddForegroundd(images, foreground=self.intensity.foreground),
                mt.CropForegroundd(
                    [*keys, "foreground"],
                    source_key="foreground",
                    select_fn=_positive,
                    allow_smaller=True,
                    allow_missing_keys=True,
                ),
            ]
        steps += [
            self.intensity.build(images),
            mt.ResizeWithPadOrCropd(keys, spatial_size=self.grid, mode="constant", allow_missing_keys=True),
        ]
        return _Chain(tuple(steps))

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
class _Chain:
    """One step after the other. MONAI's Compose would turn a DataError into a RuntimeError and log statistics."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, paths: Mapping[str, Any]) -> Mapping[str, Any]:
        return reduce(lambda data, step: step(data), self.steps, dict(paths))


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


def _positive(foreground: Tensor) -> Tensor:
    return foreground > 0


def _clip(image: Tensor) -> Tensor:
    return image.clamp(0.0, 1.0)
