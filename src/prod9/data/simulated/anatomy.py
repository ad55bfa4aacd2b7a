"""A patient's anatomy: the MNI152 template with a random pose, size, shape and folding.

All lengths are millimetres, all coordinates RAS+ in MNI space. Tissue is described only in the voxels of the brain,
as vectors ``[n]``: a quarter of the grid, so a quarter of the work.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.ndimage as ndi

from prod9.data.simulated.template import SPACING, Template, load_template

Array = np.ndarray
FIELD_OF_VIEW = (192.0, 240.0, 192.0)
"""Extent of a scan along left-right, back-front and down-up: large enough for every random head."""
CENTRE = (0.0, -18.0, 5.0)
"""MNI coordinates of the middle of the scan: about the centre of the brain."""
_DEFORMATION = ((70.0, 2.4), (32.0, 1.1), (18.0, 0.4))
"""Wavelength and standard deviation of the displacement in mm: lobes, gyri, their folds."""


class Grid:
    """The voxels of a scan, isotropic, and where they are."""

    def __init__(self, spacing_mm: float) -> None:
        self.spacing = spacing_mm
        self.shape = tuple(round(side / spacing_mm) for side in FIELD_OF_VIEW)
        origin = [c - (n - 1) / 2 * spacing_mm for c, n in zip(CENTRE, self.shape, strict=True)]
        self.affine = np.diag([spacing_mm] * 3 + [1.0])
        self.affine[:3, 3] = origin
        axes = [o + spacing_mm * np.arange(n) for o, n in zip(origin, self.shape, strict=True)]
        self.points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def smooth_noise(self, scale_mm: float, rng: np.random.Generator) -> Array:
        """Return noise as :func:`smooth_noise` does, on these voxels."""
        return smooth_noise(self.shape, self.spacing, scale_mm, rng)


def smooth_noise(
    shape: tuple[int, ...], spacing_mm: float, scale_mm: float, rng: np.random.Generator
) -> Array:
    """Return noise ``[H W D]`` of mean 0 and deviation 1 that varies over about ``scale_mm``.

    Args:
        shape: ``(H, W, D)``.
        spacing_mm: side of a voxel in mm.
        scale_mm: over which it varies.
        rng: draws it.
    """
    knots = [max(4, round(n * spacing_mm / scale_mm) + 3) for n in shape]
    field = rng.standard_normal(knots).astype(np.float32)
    for axis, length in enumerate(shape):
        # Cubic B-splines of white noise, one axis at a time: ten times faster than scipy's zoom.
        weights = _spline_basis(length, knots[axis])
        field = np.moveaxis(np.tensordot(weights, field, (1, axis)), 0, axis)
    return (field - field.mean()) / (field.std() + 1e-6)


@dataclass(frozen=True)
class Tissue:
    """The tissue in the voxels of a brain, float32 ``[n]`` over them unless stated otherwise.

    Attributes:
        mask: bool ``[H W D]``, the brain.
        position: ``[3 n]``, in the template.
        white: share of white matter; ``white``, ``grey`` and ``fluid`` add up to 1.
        grey: share of grey matter.
        fluid: share of fluid.
        ventricles: the share of fluid that lies in them.
        depth: distance to the surface of the brain.
        midline: distance to the plane between the hemispheres.
    """

    mask: Array
    position: Array
    white: Array
    grey: Array
    fluid: Array
    ventricles: Array
    depth: Array
    midline: Array


def deform(grid: Grid, rng: np.random.Generator) -> Array:
    """Return the template position ``[3 H W D]`` of every voxel: pose, size, shape and folds of a patient."""
    angles = np.deg2rad(rng.normal(0, 4, 3))
    size = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0, 0.02))
    shear = np.eye(3) + np.triu(rng.normal(0, 0.03, (3, 3)), 1)
    linear = (_rotation(angles) @ shear @ np.diag(1 / size)).astype(np.float32)
    centre = np.asarray(CENTRE, dtype=np.float32)[:, None]
    shift = rng.normal(0, 2, (3, 1)).astype(np.float32)
    position = (linear @ (grid.points.reshape(3, -1) - centre - shift) + centre).reshape(grid.points.shape)
    for scale, amplitude in _DEFORMATION:
        for axis in range(3):
            position[axis] += amplitude * grid.smooth_noise(scale, rng)
    if rng.random() < 0.5:
        position[0] *= -1  # so that the template's own asymmetry does not identify the left
    return position


def sample_tissue(grid: Grid, position: Array, rng: np.random.Generator) -> Tissue:
    """Sample the template at ``position [3 H W D]``, with the patient's own ventricle size and atrophy."""
    template = _blurred(0.6 * max(0.0, grid.spacing / SPACING - 1))
    mask = sample(template, template.mask, position) > 0.5
    inside = position[:, mask]
    wall = sample(template, template.ventricles, inside)
    grey, white = (sample(template, values, inside) for values in (template.grey, template.white))
    # Where the ventricles shrink, white matter takes the place of fluid.
    white = white + np.clip(wall / 2 + 0.5, 0, 1) * np.clip(1 - grey - white, 0, 1)
    growth = float(np.clip(rng.normal(0.3, 1.6), -2.0, 3.5))
    ventricles = sigmoid((wall + growth) / (0.35 * grid.spacing))
    atrophy = 1 - float(np.clip(rng.normal(0.08, 0.07), 0, 0.25))
    grey, white = grey * atrophy * (1 - ventricles), white * (1 - ventricles)
    return Tissue(
        mask=mask,
        position=inside,
        white=white,
        grey=grey,
        fluid=np.clip(1 - grey - white, 0, 1),
        ventricles=ventricles,
        depth=sample(template, template.depth, inside),
        midline=np.abs(inside[0]),
    )


def sample(template: Template, values: Array, position: Array) -> Array:
    """Return ``values`` of the template at ``position [3 …]``, linearly interpolated, float32 ``[…]``."""
    linear, shift = template.inverse[:3, :3].astype(np.float32), template.inverse[:3, 3].astype(np.float32)
    voxels = linear @ position.reshape(3, -1) + shift[:, None]
    result = ndi.map_coordinates(values, voxels, order=1, mode="nearest", output=np.float32)
    return result.reshape(position.shape[1:])


def sigmoid(x: Array) -> Array:
    """Return the logistic function of ``x``."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


@cache
def _blurred(width: float) -> Template:
    """Return the template blurred by ``width`` voxels: folds finer than the grid would alias into speckle."""
    template = load_template()
    if width == 0:
        return template
    maps = ("grey", "white", "mask", "depth", "ventricles")
    return Template(
        **{name: ndi.gaussian_filter(getattr(template, name), width) for name in maps},
        inverse=template.inverse,
    )


@cache
def _spline_basis(length: int, knots: int) -> Array:
    """Return ``[length, knots]``: the weight of each uniform cubic B-spline at each voxel of an axis."""
    position = np.linspace(1, knots - 2, length)
    distance = np.abs(position[:, None] - np.arange(knots)[None])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance) ** 3 / 6
    return np.where(distance < 1, inner, np.where(distance < 2, outer, 0.0)).astype(np.float32)


def _rotation(angles: Array) -> Array:
    x, y, z = (np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles)
    rx, ry, rz = np.eye(3), np.eye(3), np.eye(3)
    rx[1:, 1:], rz[:2, :2] = x, z
    ry[np.ix_([0, 2], [0, 2])] = y
    return rx @ ry @ rz
