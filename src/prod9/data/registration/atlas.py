"""The atlas that scans are brought to: MNI152 as nilearn ships it, or a file such as SRI24's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from prod9.data.registration.geometry import Array, Placed, axis_aligned, foreground, resample
from prod9.data.registration.rigid import WORKING_MM
from prod9.data.simulated.anatomy import Grid
from prod9.data.simulated.template import stripped_scan
from prod9.errors import DataError
from prod9.files import sha256
from prod9.volumes import read

MNI152 = "mni152"
_MARGIN_MM = 6.0
"""What the atlas is compared on reaches this far beyond its brain: the outer surface of the brain is an edge too."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """A T1-weighted brain without its skull, and the grid that results have.

    Attributes:
        name: ``mni152``, or the name of the file.
        digest: SHA-256 of the file; empty for ``mni152``.
        scan: the atlas.
        brain: bool on its voxels.
        shape: sides of the results' grid.
        affine: 4×4, voxels of that grid to mm.
    """

    name: str
    digest: str
    scan: Placed
    brain: Array
    shape: tuple[int, ...]
    affine: Array

    @property
    def compared(self) -> Array:
        """Return bool on the voxels of ``scan``: those that a registration compares."""
        reach = max(1, round(_MARGIN_MM / float(self.scan.spacing.min())))
        return np.asarray(ndi.binary_dilation(self.brain, iterations=reach))

    def on_grid(self) -> tuple[Array, Array]:
        """Return atlas and brain (bool) on the grid of the results."""
        unmoved = np.eye(4)
        scan = resample(self.scan, self.shape, self.affine, unmoved, order=1)
        brain = Placed(self.brain, self.scan.affine)
        return scan, resample(brain, self.shape, self.affine, unmoved, order=0) > 0.5


def load_atlas(name: str, *, spacing_mm: float) -> Atlas:
    """Return the atlas ``mni152`` or that of a file, with results on cubic voxels of ``spacing_mm``.

    The grid of ``mni152`` covers 192 × 240 × 192 mm, as simulated cohorts do; that of a file covers what the file does.
    Raises DataError for a file that shows a skull, and MissingDependencyError for ``mni152`` without nilearn.
    """
    if name == MNI152:
        scan = _coarse(*stripped_scan())
        brain = np.asarray(ndi.binary_fill_holes(ndi.binary_opening(scan.data > 0.1)))
        grid = Grid(spacing_mm)
        return Atlas(MNI152, "", scan, brain, grid.shape, grid.affine)
    path = Path(name)
    file = read(path)
    scan = _coarse(file.data, file.header.affine)
    brain = foreground(scan.data)
    share = _border_share(brain)
    if not brain.any() or share > 0.05:
        raise DataError(
            f"{path}: expected an atlas of the brain without skull, got one whose head fills {share:.0%} of its outer "
            "faces; give the stripped version, such as SRI24's spgr brain."
        )
    shape, affine = axis_aligned(file.data.shape, file.header.affine, spacing_mm)
    return Atlas(path.name, sha256(path), scan, brain, shape, affine)


def _coarse(data: Array, affine: Array) -> Placed:
    """Return an atlas on the voxels that scans are registered with: finer ones would cost seconds a case."""
    shape, grid = axis_aligned(data.shape, affine, WORKING_MM)
    return Placed(resample(Placed(data, affine), shape, grid, np.eye(4), order=1), grid)


def _border_share(mask: Array) -> float:
    faces: Sequence[Array] = [mask.take(place, axis) for axis in range(3) for place in (0, -1)]
    return float(np.concatenate([face.ravel() for face in faces]).mean())
