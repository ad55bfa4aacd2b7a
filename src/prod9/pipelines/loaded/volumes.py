"""Volumes in and out of loaded models: files, arrays and results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prod9 import volumes
from prod9.errors import ConfigError
from prod9.modalities import spelt
from prod9.nifti import headers as nifti
from prod9.system.machine import expand
from prod9.volumes import VolumeFile, VolumeHeader

Given = Any
"""A path; a ``(array, affine)`` pair; a :class:`Result`; an image of nibabel; or an array ``[H W D]`` alone, which is
taken to lie in RAS with voxels of the model's spacing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A volume that a model made, or that was read.

    Attributes:
        data: float32 ``[H W D]``; in [0, 1] if it was generated from a label, in the intensities of the source if it
            was made from one.
        affine: 4×4, voxel to RAS+ mm.
        label: its modality or class.
        seed: of its sample; None for a volume that was read.
        header: that of the source whose voxels it has; None for a volume on the model's grid.
    """

    data: np.ndarray
    affine: np.ndarray
    label: str
    seed: int | None = None
    header: VolumeHeader | None = None

    def save(self, path: str | Path) -> Path:
        """Write it as NIfTI (``.nii`` or ``.nii.gz``) with the geometry of its source, and return the path.

        Raises DataError for another suffix, or where nothing can be written.
        """
        target = expand(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        volumes.write(target, self.data, self.affine if self.header is None else self.header)
        return target

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the voxels, so that numpy and matplotlib take the result as it is."""
        return np.array(self.data, dtype=dtype, copy=bool(copy)) if copy else np.asarray(self.data, dtype)

    def __repr__(self) -> str:
        """Return label, shape, voxel size and seed."""
        sides = " × ".join(map(str, self.data.shape))
        spacing = " × ".join(f"{side:.3g}" for side in np.linalg.norm(self.affine[:3, :3], axis=0))
        drawn = "" if self.seed is None else f", seed {self.seed}"
        return f"Result({self.label}, {sides} voxels of {spacing} mm{drawn})"


def load_volume(path: str | Path) -> Result:
    """Return the volume of a NIfTI file, in the file's own axes and intensities; raises DataError.

    Example:
        >>> import numpy as np
        >>> import prod9
        >>> from prod9 import volumes
        >>> volumes.write("t1.nii.gz", np.ones((8, 9, 10)), np.eye(4))
        >>> prod9.load_volume("t1.nii.gz")
        Result(t1, 8 × 9 × 10 voxels of 1 × 1 × 1 mm)
    """
    file = volumes.read(expand(path))
    label = Path(path).name.removesuffix(".gz").removesuffix(".nii")
    return Result(data=file.data, affine=file.header.affine, label=label, header=file.header)


def save_all(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Write each of ``results`` as ``LABEL_SEED.nii.gz`` into ``folder``, made if missing, and return the paths.

    Files of these names are replaced. Raises ConfigError, and writes nothing, for two results of one name.
    """
    names = [f"{one.label}_{one.seed or 0:04d}.nii.gz" for one in results]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ConfigError(
            f"results: expected each with a label and seed of its own, got two that would become {twice}; save them "
            "into different folders, or each by its save()."
        )
    return [one.save(Path(folder) / name) for name, one in zip(names, results, strict=True)]


def volume_of(given: Given, what: str, spacing: Sequence[float] | None) -> VolumeFile:
    """Return ``given`` as a volume; ConfigError for what is none, DataError for a file that cannot be read.

    Args:
        given: see :data:`Given`.
        what: what it is, for messages.
        spacing: mm of the voxels of an array alone; None for 1 mm.
    """
    if isinstance(given, VolumeFile):
        return given
    if isinstance(given, str | Path):
        return volumes.read(expand(given))
    if isinstance(given, Result):
        if given.header is not None:
            return VolumeFile(np.asarray(given.data, np.float32), given.header)
        return _of_array(given.data, given.affine, what)
    if isinstance(given, tuple) and len(given) == 2:
        return _of_array(given[0], given[1], what)
    dataobj, affine = getattr(given, "dataobj", None), getattr(given, "affine", None)
    if dataobj is not None and affine is not None:
        return _of_array(dataobj, affine, what)
    return _of_array(given, np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0]), what)


def volume_on(given: Given, what: str, file: VolumeFile) -> VolumeFile:
    """Return ``given`` as :func:`volume_of` does; an array alone lies on the voxels of ``file``, in its axes."""
    has_place = isinstance(given, VolumeFile | str | Path | Result) or hasattr(given, "dataobj")
    if has_place or (isinstance(given, tuple) and len(given) == 2):
        return volume_of(given, what, None)
    found = _of_array(given, file.header.affine, what)
    if found.data.shape != file.data.shape:
        raise ConfigError(
            f"{what}: expected an array of the {nifti.times(file.data.shape)} voxels of the source, got "
            f"{nifti.times(found.data.shape)}; give its affine too, as (array, affine)."
        )
    return VolumeFile(found.data, replace(file.header, path=Path(what)))


def volumes_by_label(
    given: Mapping[str, Given], known: Sequence[str], spacing: Sequence[float] | None
) -> dict[str, VolumeFile]:
    """Return ``given`` with its names as the model spells them; ConfigError where two mean the same."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"sources: expected a dictionary, name: volume, got {type(given).__name__}.")
    return {
        name: volume_of(one, f"sources[{name!r}]", spacing)
        for name, one in spelt("sources", given, known).items()
    }


def _of_array(data: Any, affine: Any, what: str) -> VolumeFile:
    try:
        if np.iscomplexobj(data):
            raise TypeError("complex numbers")
        voxels, matrix = np.asarray(data, dtype=np.float32), np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor with a gradient
        raise ConfigError(
            f"{what}: expected a path or an array [H W D] of real numbers, got {type(data).__name__}."
        ) from error
    if voxels.ndim != 3 or matrix.shape != (4, 4):
        raise ConfigError(
            f"{what}: expected an array [H W D] and an affine of 4×4, got shapes {voxels.shape} and {matrix.shape}."
        )
    if not np.isfinite(voxels).all() or not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) == 0:
        raise ConfigError(f"{what}: expected finite voxels and an affine that can be inverted, got others.")
    sides = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    # Geometry is checked as that of a file is.
    raw = nifti.made(sides, matrix, np.dtype(np.float32), nifti.UNSCALED)
    nifti.require_extent(raw, sides, nifti.affine_mm(raw, Path(what)), Path(what))
    header = VolumeHeader(
        path=Path(what), shape=sides, affine=matrix, dtype=np.dtype(np.float32), stored_shape=sides, offset=0
    )
    return VolumeFile(voxels, header)
