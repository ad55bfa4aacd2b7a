"""Rigid registration by mutual information, which needs no relation between the contrasts of two scans.

D. Mattes et al., "PET-CT image registration in the chest using free-form deformations", IEEE Transactions on Medical
Imaging 22 (1), 2003: the estimate of mutual information and its gradient that SimpleITK computes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prod9.data.registration.geometry import Array, Placed, apply, axis_aligned, resample
from prod9.errors import DataError, MissingDependencyError

WORKING_MM = 2.0
"""Voxel size at which scans are registered. Finer voxels cost eight times as much, and gain a tenth of a millimetre."""
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_BINS = 48
_SHARE = 0.2
"""Share of the voxels that a cost is computed from, beside the levels' own."""
_SEED = 1
"""Of the small shifts of the points that are compared, so that a search is the same on every run."""
_STARTS = 3
_TILT = np.deg2rad(15.0)
_LEVELS = ((8.0, 2.0, 100, 1.0), (4.0, 1.0, 60, 0.5), (2.0, 0.0, 40, 0.12))
"""Voxel size in mm, smoothing in voxels, largest number of steps, and share of voxels compared, coarse to fine."""


@dataclass(frozen=True, eq=False)
class Rigid:
    """A rigid transform found.

    Attributes:
        matrix: 4×4, mm of the fixed volume to mm of the moving one.
        information: mutual information (nats) of the two volumes under it.
        before: the same with both volumes where their headers put them, which is where they stay unless it is less.
    """

    matrix: Array
    information: float
    before: float


def register(
    fixed: Placed, moving: Placed, *, mask: Array | None = None, working_mm: float = WORKING_MM
) -> Rigid:
    """Find the rotation and translation that align ``moving`` with ``fixed``.

    The search starts where the headers put the volumes, and where the centres of their fields of view or of their
    mass agree, each also tilted by 15° about every axis; the three best of these starts are followed. It is the same
    on every run.

    Args:
        fixed: volume whose place stays.
        moving: volume of the same head.
        mask: bool on the voxels of ``fixed``: only these are compared, such as the brain of a stripped atlas.
        working_mm: both volumes are brought to cubic voxels of this size first.

    Raises:
        DataError: if the volumes share no information wherever one is put.
        MissingDependencyError: without SimpleITK.

    Example:
        >>> import numpy as np
        >>> from prod9.data.registration.geometry import Placed
        >>> from prod9.data.registration.rigid import register
        >>> r = np.random.default_rng(0)
        >>> blobs = np.kron(r.random((5, 6, 5)), np.ones((4, 4, 4)))
        >>> moved = np.diag([4.0, 4.0, 4.0, 1.0])
        >>> fixed, moving = Placed(blobs, moved.copy()), Placed(blobs, moved.copy())
        >>> moving.affine[:3, 3] = [5, 0, -3]
        >>> register(fixed, moving, working_mm=4.0).matrix[:3, 3].round().tolist()
        [5.0, 0.0, -3.0]
    """
    sitk = simple_itk()
    working = [_working(volume, working_mm) for volume in (fixed, moving)]
    images = [_image(sitk, volume) for volume in working]
    region = None
    if mask is not None:
        shape, grid = working[0].data.shape, working[0].affine
        inside = resample(Placed(mask, fixed.affine), shape, grid, np.eye(4), order=0)
        region = sitk.Cast(_image(sitk, Placed(inside, grid)), sitk.sitkUInt8)
    try:
        return _Search(sitk, images, region, _mass_centre(working[0]), working_mm).run(_starts(*working))
    except RuntimeError as problem:  # SimpleITK's own: nothing overlaps, or all values are equal
        text = " ".join(str(problem).split())[-120:]
        raise DataError(f"expected two scans of one head, got none that align ({text})") from problem


def simple_itk() -> Any:
    """Import SimpleITK; MissingDependencyError with the install command where it is not installed."""
    try:
        import SimpleITK as sitk  # noqa: N813
    except ImportError as error:
        raise MissingDependencyError(
            "SimpleITK: expected the package, for registration, got none; install it with: pip install "
            "'prod9[preprocess]'"
        ) from error
    # Several threads add up in the order in which they end; with one, sums over voxels still differ by 1e-6 from run
    # to run, and not by more.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return sitk


@dataclass(frozen=True, eq=False)
class _Search:
    """One registration. images: fixed and moving. region: mask on the fixed one. pivot: centre of rotations, RAS."""

    sitk: Any
    images: list[Any]
    region: Any
    pivot: Array
    working_mm: float

    def run(self, starts: list[Array]) -> Rigid:
        """Follow the best of ``starts`` at the coarsest level, and the best of those to the finest."""
        costs = self._coarse_costs(starts)
        best = sorted(range(len(starts)), key=lambda k: costs[k])[:_STARTS]
        if not np.isfinite(costs[best[0]]):
            raise DataError("expected two scans of one head, got scans whose fields of view do not meet")
        found = [self._descend(starts[k], _LEVELS[:1]) for k in best]
        start = min(found, key=self._cost)
        # The last digits are noise.
        final = np.round(self._descend(start, _LEVELS[1:]), 9)
        cost, before = self._cost(final), self._cost(np.eye(4))
        if before <= cost:  # registered already: a search may end a part of a voxel beside it
            final, cost = np.eye(4), before
        return Rigid(final, -cost, max(0.0, -before))

    def _coarse_costs(self, starts: list[Array]) -> list[float]:
        sitk = self.sitk
        factors = [max(1, round(_LEVELS[0][0] / self.working_mm))] * 3
        images = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, 6.0), factors) for image in self.images]
        region = None if self.region is None else sitk.Shrink(self.region, factors)
        coarse = _Search(sitk, images, region, self.pivot, self.working_mm)
        return [coarse._cost(start) for start in starts]

    def _descend(self, start: Array, levels: tuple[tuple[float, float, int, float], ...]) -> Array:
        """Return ``start``, a matrix in RAS, improved level by level."""
        transform = self._to_itk(start)
        for size_mm, smoothing, steps, share in levels:
            search = self._method(share)
            search.SetShrinkFactorsPerLevel([max(1, round(size_mm / self.working_mm))])
            search.SetSmoothingSigmasPerLevel([smoothing * size_mm])
            search.SetOptimizerAsRegularStepGradientDescent(
                learningRate=size_mm / 2, minStep=0.01, numberOfIterations=steps, relaxationFactor=0.7
            )
            search.SetOptimizerScalesFromPhysicalShift()
            search.SetInitialTransform(transform, inPlace=True)
            search.Execute(*self.images)
        return _from_itk(transform)

    def _cost(self, matrix: Array) -> float:
        """Return minus the mutual information, infinite where the volumes do not meet."""
        search = self._method()
        search.SetInitialTransform(self._to_itk(matrix))
        try:
            return float(search.MetricEvaluate(*self.images))
        except RuntimeError:
            return float("inf")

    def _method(self, share: float = _SHARE) -> Any:
        search = self.sitk.ImageRegistrationMethod()
        search.SetMetricAsMattesMutualInformation(_BINS)
        search.SetMetricSamplingStrategy(search.REGULAR)
        search.SetMetricSamplingPercentage(share, _SEED)
        search.SetInterpolator(self.sitk.sitkLinear)
        if self.region is not None:
            search.SetMetricFixedMask(self.region)
        return search

    def _to_itk(self, matrix: Array) -> Any:
        """Return ``matrix`` as a transform whose angles turn about the head, not about the far origin."""
        lps, centre = _LPS @ matrix @ _LPS, _LPS[:3, :3] @ self.pivot
        transform = self.sitk.Euler3DTransform()
        transform.SetCenter(centre.tolist())
        transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
        transform.SetTranslation((lps[:3, 3] + lps[:3, :3] @ centre - centre).tolist())
        return transform


def _starts(fixed: Placed, moving: Placed) -> list[Array]:
    shifts = [np.zeros(3), moving.centre - fixed.centre, _mass_centre(moving) - _mass_centre(fixed)]
    pivot = _mass_centre(fixed)
    starts = []
    for shift in shifts:
        for rotation in (np.eye(3), *(_turn(axis, angle) for axis in range(3) for angle in (-_TILT, _TILT))):
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = rotation, pivot + shift - rotation @ pivot
            starts.append(matrix)
    return starts


def _turn(axis: int, angle: float) -> Array:
    first, second = (k for k in range(3) if k != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _mass_centre(volume: Placed) -> Array:
    weights = np.clip(volume.data, 0, None)
    total = weights.sum()
    if total <= 0:
        return volume.centre
    voxel = [
        float((weights.sum(axis=tuple({0, 1, 2} - {axis})) * np.arange(side)).sum() / total)
        for axis, side in enumerate(weights.shape)
    ]
    return apply(volume.affine, np.asarray(voxel))


def _working(volume: Placed, spacing_mm: float) -> Placed:
    """Return ``volume`` on cubic voxels along RAS, its brightest half percent cut off: fat and vessels."""
    shape, grid = axis_aligned(volume.data.shape, volume.affine, spacing_mm)
    top = float(np.percentile(volume.data, 99.8))
    capped = Placed(np.minimum(volume.data, top), volume.affine)
    return Placed(resample(capped, shape, grid, np.eye(4), order=1, outside=float(capped.data.min())), grid)


def _image(sitk: Any, volume: Placed) -> Any:
    """Return a volume along RAS as SimpleITK has it: axes turned round, and LPS."""
    flipped = np.ascontiguousarray(np.asarray(volume.data, np.float32)[::-1, ::-1].transpose(2, 1, 0))
    image = sitk.GetImageFromArray(flipped)
    corner = np.asarray([volume.data.shape[0] - 1, volume.data.shape[1] - 1, 0])
    image.SetOrigin((_LPS @ np.append(apply(volume.affine, corner), 1))[:3].tolist())
    image.SetSpacing(volume.spacing.tolist())
    return image


def _from_itk(transform: Any) -> Array:
    lps = np.eye(4)
    rotation = np.asarray(transform.GetMatrix()).reshape(3, 3)
    centre = np.asarray(transform.GetCenter())
    lps[:3, :3] = rotation
    lps[:3, 3] = np.asarray(transform.GetTranslation()) + centre - rotation @ centre
    return _LPS @ lps @ _LPS
