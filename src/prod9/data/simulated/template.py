"""The MNI152 template as simulation needs it, read from files that nilearn ships."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from prod9.errors import MissingDependencyError
from prod9.volumes import read

SPACING = 2.0
"""Voxel size of the maps in mm, after their resolution is halved once."""
_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_INSTALL = "install it with: pip install 'nilearn>=0.11'"
_MARGIN = 4
_VENTRICLE_DEPTH = 14.0
_MIN_VENTRICLE_VOXELS = 30


@dataclass(frozen=True)
class Template:
    """Maps ``[X Y Z]`` of the MNI152 template on a grid of ``SPACING`` mm.

    grey, white: probabilities. mask: brain, 0 to 1. depth: distance in mm to the brain's surface, positive
    inside. ventricles: signed distance to the wall of the ventricles, positive inside. inverse: 4×4, mm to
    voxels.
    """

    grey: np.ndarray
    white: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    ventricles: np.ndarray
    inverse: np.ndarray


@cache
def load_template() -> Template:
    """Load the maps; nothing is downloaded. Raises MissingDependencyError where nilearn is not installed."""
    folder = _folder()
    scan, _ = _load(folder, "t1")
    grey, affine = _load(folder, "gm")
    white, _ = _load(folder, "wm")
    brain = np.asarray(ndi.binary_fill_holes(ndi.binary_opening(scan > 0.1)))
    depth = _signed_distance(brain)
    fluid = (1 - grey - white > 0.5) & (depth > _VENTRICLE_DEPTH)
    pieces = np.zeros(fluid.shape, dtype=np.int32)
    ndi.label(ndi.binary_opening(fluid), output=pieces)
    large = np.bincount(pieces.ravel(), fluid.ravel()) >= _MIN_VENTRICLE_VOXELS
    large[0] = False
    ventricles = large[pieces]
    return Template(
        grey=grey * brain,
        white=white * brain,
        mask=ndi.gaussian_filter(brain.astype(np.float32), 0.5),
        depth=depth,
        ventricles=ndi.gaussian_filter(_signed_distance(ventricles), 0.7),
        inverse=np.linalg.inv(affine),
    )


def stripped_scan() -> tuple[np.ndarray, np.ndarray]:
    """Return the T1-weighted template without its skull, float32 ``[X Y Z]`` of 0 to 1 at 1 mm, and its affine."""
    file = read(_folder() / _FILE.format("t1"))
    return file.data / 255, file.header.affine


def _folder() -> Path:
    # Found, not imported: importing nilearn takes longer than simulating several patients.
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise MissingDependencyError(
            f"nilearn: expected the package, for its MNI152 maps, got none; {_INSTALL}"
        )
    folder = Path(package.origin).parent / "datasets" / "data"
    if not (folder / _FILE.format("t1")).exists():
        raise MissingDependencyError(
            f"{folder}: expected the MNI152 maps, got none from this version of nilearn; {_INSTALL}"
        )
    return folder


def _load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a map, 0 to 1, averaged over blocks of 2³ voxels, and its affine."""
    file = read(folder / _FILE.format(name))
    # The template ends within the brain stem: with a margin, the brain ends there too.
    margin = 2 * _MARGIN
    data = np.pad(file.data / 255, [(margin, margin + n % 2) for n in file.data.shape])
    for axis in range(3):
        even, odd = (data.take(range(start, data.shape[axis], 2), axis) for start in (0, 1))
        data = (even + odd) / 2
    affine = file.header.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = file.header.affine[:3] @ (*[0.5 - margin] * 3, 1.0)
    return data, affine


def _signed_distance(region: np.ndarray) -> np.ndarray:
    """Return the distance in mm to the surface of ``region``, positive inside."""
    inside, outside = (np.asarray(ndi.distance_transform_edt(part)) for part in (region, ~region))
    return (SPACING * (inside - outside)).astype(np.float32)
