"""One simulated patient: a deformed MNI152 anatomy, a tumour in some, and four contrasts.

All lengths are millimetres, all coordinates RAS+ in MNI space. The anatomy is carried by a few smooth maps of
the template that are sampled at deformed positions, so a patient costs a handful of interpolations.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.ndimage as ndi

from prod9.errors import MissingDependencyError

Array = np.ndarray
FIELD_OF_VIEW = (240.0, 240.0, 155.0)
"""Extent of a BraTS scan along left-right, back-front and down-up."""
CENTRE = (0.0, -18.0, 6.0)
"""MNI coordinates of the middle of the scan: about the centre of the brain."""

# white matter, grey matter, fluid, oedema, necrosis, enhancing rim; a mean of 1 is about the 99th percentile
CONTRASTS: dict[str, tuple[float, ...]] = {
    "T1": (0.86, 0.62, 0.24, 0.58, 0.36, 0.60),
    "T1ce": (0.80, 0.59, 0.26, 0.56, 0.34, 1.10),
    "T2": (0.38, 0.56, 1.00, 0.82, 0.86, 0.64),
    "FLAIR": (0.50, 0.64, 0.16, 0.98, 0.42, 0.78),
}
TISSUE_JITTER = 0.035
NECROSIS, OEDEMA, ENHANCING = 1, 2, 3


@dataclass(frozen=True)
class Template:
    """Maps of the MNI152 template on its own 2 mm grid.

    grey, white: probabilities. mask: brain, 0 to 1. depth: distance to the brain's surface, positive inside.
    ventricles: signed distance to the wall of the ventricles, positive inside. inverse: 4×4, mm to voxels.
    """

    grey: Array
    white: Array
    mask: Array
    depth: Array
    ventricles: Array
    inverse: Array


@dataclass(frozen=True)
class Phantom:
    """One patient: ``scans`` float32 ``[H W D]`` by modality, ``seg`` uint8 (labels 1, 2, 3), RAS affine.

    ventricle_ml, tumour_ml: volumes. grey: bool, grey matter, to compare patients with.
    """

    scans: dict[str, Array]
    seg: Array
    affine: Array
    grey: Array
    ventricle_ml: float
    tumour_ml: float


@cache
def load_template() -> Template:
    """Load the maps that nilearn ships; nothing is downloaded. Raises MissingDependencyError without it."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "simulating patients needs nilearn's MNI152 maps; install them with: pip install 'prod9[demo]'"
        ) from error
    grey_image = datasets.load_mni152_gm_template(resolution=2)
    grey = np.clip(grey_image.get_fdata(dtype=np.float32), 0, 1)
    white = np.clip(datasets.load_mni152_wm_template(resolution=2).get_fdata(dtype=np.float32), 0, 1)
    brain = datasets.load_mni152_brain_mask(resolution=2).get_fdata() > 0.5
    brain = ndi.binary_fill_holes(ndi.binary_opening(brain, iterations=1))
    depth = 2.0 * (ndi.distance_transform_edt(brain) - ndi.distance_transform_edt(~brain))
    fluid = (1 - grey - white > 0.5) & (depth > 14)
    labels, count = ndi.label(ndi.binary_opening(fluid))
    sizes = ndi.sum_labels(fluid, labels, range(1, count + 1))
    ventricles = np.isin(labels, 1 + np.flatnonzero(sizes >= 30))
    wall = 2.0 * (ndi.distance_transform_edt(ventricles) - ndi.distance_transform_edt(~ventricles))
    return Template(
        grey=grey * brain,
        white=white * brain,
        mask=ndi.gaussian_filter(brain.astype(np.float32), 0.5),
        depth=depth.astype(np.float32),
        ventricles=ndi.gaussian_filter(wall.astype(np.float32), 0.7),
        inverse=np.linalg.inv(grey_image.affine),
    )


def make_phantom(*, spacing_mm: float, rng: np.random.Generator) -> Phantom:
    """Make a patient on an isotropic grid over ``FIELD_OF_VIEW``; everything random comes from ``rng``."""
    grid = _Grid(spacing_mm)
    position = _deform(grid, rng)
    tumour = _Tumour.draw(rng) if rng.random() < 0.78 else None
    if tumour is not None:
        tumour = tumour.placed(grid, position, rng)
        position = tumour.displace(position)
    tissue = _tissues(grid, position, rng)
    seg = np.zeros(grid.shape, dtype=np.uint8)
    if tumour is not None:
        seg = tumour.segment(grid, position, tissue, rng)
    scans = {name: _scan(name, grid, tissue, seg, rng) for name in CONTRASTS}
    voxel_ml = spacing_mm**3 / 1000
    return Phantom(
        scans=scans,
        seg=seg,
        affine=grid.affine,
        grey=tissue.grey > 0.5,
        ventricle_ml=float(tissue.ventricles.sum() * voxel_ml),
        tumour_ml=float((seg > 0).sum() * voxel_ml),
    )


class _Grid:
    """The voxels of a scan and their MNI coordinates."""

    def __init__(self, spacing_mm: float) -> None:
        self.spacing = spacing_mm
        self.shape = tuple(round(side / spacing_mm) for side in FIELD_OF_VIEW)
        origin = [c - (n - 1) / 2 * spacing_mm for c, n in zip(CENTRE, self.shape, strict=True)]
        self.affine = np.diag([spacing_mm] * 3 + [1.0])
        self.affine[:3, 3] = origin
        axes = [o + spacing_mm * np.arange(n) for o, n in zip(origin, self.shape, strict=True)]
        self.points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def smooth_noise(self, scale_mm: float, rng: np.random.Generator) -> Array:
        """Return noise ``[H W D]`` of mean 0 and deviation 1 that varies over about ``scale_mm``."""
        field = rng.standard_normal([_knots(n, self.spacing, scale_mm) for n in self.shape]).astype(
            np.float32
        )
        for axis, length in enumerate(self.shape):
            # Cubic B-splines of white noise, one axis at a time: ten times faster than scipy's zoom.
            field = np.moveaxis(
                np.tensordot(_spline_basis(length, field.shape[axis]), field, (1, axis)), 0, axis
            )
        return (field - field.mean()) / (field.std() + 1e-6)


def _knots(length: int, spacing_mm: float, scale_mm: float) -> int:
    return max(4, round(length * spacing_mm / scale_mm) + 3)


@cache
def _spline_basis(length: int, knots: int) -> Array:
    """Return ``[length, knots]``: the weight of each uniform cubic B-spline at each voxel of an axis."""
    position = np.linspace(1, knots - 2, length)
    distance = np.abs(position[:, None] - np.arange(knots)[None])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance) ** 3 / 6
    return np.where(distance < 1, inner, np.where(distance < 2, outer, 0.0)).astype(np.float32)


def _deform(grid: _Grid, rng: np.random.Generator) -> Array:
    """Return the template position ``[3 H W D]`` of every voxel: pose, size, shape and folds of a patient."""
    angles = np.deg2rad(rng.normal(0, 4, 3))
    size = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0, 0.02))
    shear = np.eye(3) + np.triu(rng.normal(0, 0.03, (3, 3)), 1)
    linear = _rotation(angles) @ shear @ np.diag(1 / size)
    centre = np.asarray(CENTRE, dtype=np.float32)[:, None]
    flat = grid.points.reshape(3, -1) - centre - rng.normal(0, 2, (3, 1))
    position = (linear @ flat + centre).reshape(grid.points.shape)
    for scale, amplitude in ((70.0, 3.2), (32.0, 1.7), (18.0, 0.6)):
        position += amplitude * np.stack([grid.smooth_noise(scale, rng) for _ in range(3)])
    if rng.random() < 0.5:
        position[0] *= -1  # the template's own asymmetry must not mark the left
    return position


def _rotation(angles: Array) -> Array:
    x, y, z = (np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles)
    rx, ry, rz = np.eye(3), np.eye(3), np.eye(3)
    rx[1:, 1:], rz[:2, :2] = x, z
    ry[np.ix_([0, 2], [0, 2])] = y
    return rx @ ry @ rz


@dataclass(frozen=True)
class _Tissue:
    white: Array
    grey: Array
    fluid: Array
    ventricles: Array
    mask: Array
    depth: Array
    midline: Array


def _tissues(grid: _Grid, position: Array, rng: np.random.Generator) -> _Tissue:
    """Sample the template at ``position``, with the patient's own ventricle size and atrophy."""
    template = load_template()
    voxels = _to_voxels(template, position)
    # Half a voxel of blur before sampling more coarsely than the template avoids aliased folds.
    blur = max(0.0, grid.spacing / 2 - 1) * 0.6

    def sample(values: Array) -> Array:
        source = ndi.gaussian_filter(values, blur) if blur > 0 else values
        return ndi.map_coordinates(source, voxels, order=1, mode="nearest").astype(np.float32)

    mask = sample(template.mask) > 0.5
    wall = sample(template.ventricles) + np.clip(rng.normal(0.4, 1.9), -2.2, 4.5)
    ventricles = _sigmoid(wall / (0.35 * grid.spacing)) * mask
    grey, white = sample(template.grey), sample(template.white)
    # Where the ventricles shrink, white matter takes the place of fluid.
    freed = np.clip(sample(template.ventricles) / 2 + 0.5, 0, 1) * np.clip(1 - grey - white, 0, 1)
    white = white + freed
    atrophy = 1 - np.clip(rng.normal(0.08, 0.07), 0, 0.25)
    grey, white = grey * atrophy * (1 - ventricles) * mask, white * (1 - ventricles) * mask
    fluid = np.clip(1 - grey - white, 0, 1) * mask
    return _Tissue(white, grey, fluid, ventricles, mask, sample(template.depth), np.abs(position[0]))


def _to_voxels(template: Template, position: Array) -> Array:
    linear, shift = template.inverse[:3, :3], template.inverse[:3, 3]
    return np.einsum("ij,jxyz->ixyz", linear, position) + shift[:, None, None, None]


@dataclass(frozen=True)
class _Tumour:
    """A glioma: core radius, oedema reach (in core radii), necrotic share of the core, mass effect."""

    radius: float
    reach: float
    necrosis: float
    push: float
    centre: Array

    @staticmethod
    def draw(rng: np.random.Generator) -> "_Tumour":
        return _Tumour(
            radius=float(rng.uniform(9, 19)),
            reach=float(rng.uniform(1.5, 2.3)),
            necrosis=float(rng.uniform(0.45, 0.78)),
            push=float(rng.uniform(0.1, 0.35)),
            centre=np.zeros(3),
        )

    def placed(self, grid: _Grid, position: Array, rng: np.random.Generator) -> "_Tumour":
        """Centre the tumour on white matter deep enough to hold most of it."""
        template = load_template()
        voxels = _to_voxels(template, position)
        depth = ndi.map_coordinates(template.depth, voxels, order=1, mode="nearest")
        white = ndi.map_coordinates(template.white, voxels, order=1, mode="nearest")
        upper = position[2] > -25  # gliomas of the cerebellum and brain stem are rare in adults
        weight = ((white > 0.5) & (depth > 0.7 * self.radius) & upper).astype(np.float64)
        index = rng.choice(weight.size, p=weight.ravel() / weight.sum())
        centre = position.reshape(3, -1)[:, index]
        return _Tumour(self.radius, self.reach, self.necrosis, self.push, centre)

    def displace(self, position: Array) -> Array:
        """Push surrounding tissue outward: sample nearer the centre, fading over two radii."""
        offset = position - self.centre[:, None, None, None]
        distance = np.sqrt((offset**2).sum(0)) + 1e-3
        pull = self.push * self.radius * np.exp(-((distance / (1.5 * self.radius)) ** 2))
        return self.centre[:, None, None, None] + offset * np.maximum(1 - pull / distance, 0.05)

    def segment(self, grid: _Grid, position: Array, tissue: _Tissue, rng: np.random.Generator) -> Array:
        """Return labels: irregular core with a rim around necrosis, oedema that prefers white matter."""
        offset = position - self.centre[:, None, None, None]
        distance = np.sqrt((offset**2).sum(0)) / self.radius
        core = distance * np.exp(0.16 * grid.smooth_noise(14, rng))
        halo = distance * np.exp(0.22 * grid.smooth_noise(22, rng))
        inside = (tissue.depth > 0) & (tissue.ventricles < 0.5)
        # Oedema follows white matter tracts and stops at cortex and fluid.
        reach = self.reach * (0.35 + 0.65 * np.clip(tissue.white / 0.6, 0, 1))
        seg = np.zeros(grid.shape, dtype=np.uint8)
        seg[(halo < reach) & inside & (tissue.fluid < 0.6)] = OEDEMA
        seg[(core < 1) & inside] = ENHANCING
        seg[(core < self.necrosis) & inside] = NECROSIS
        return seg


def _scan(modality: str, grid: _Grid, tissue: _Tissue, seg: Array, rng: np.random.Generator) -> Array:
    """Return one scan, 0 outside the brain: its own contrast, bias field, noise and units."""
    means = np.asarray(CONTRASTS[modality]) + rng.normal(0, TISSUE_JITTER, 6)
    white, grey, fluid, oedema, necrosis, rim = means
    image = white * tissue.white + grey * tissue.grey + fluid * tissue.fluid
    if modality == "T1ce":
        image += _normal_enhancement(grid, tissue, rng)
    texture = 1 + 0.06 * grid.smooth_noise(9, rng)
    for label, value, share in ((OEDEMA, oedema, 0.85), (ENHANCING, rim, 0.95), (NECROSIS, necrosis, 0.95)):
        region = share * ndi.gaussian_filter((seg == label).astype(np.float32), 0.45)
        image = image * (1 - region) + region * value * texture
    image *= np.exp(0.07 * grid.smooth_noise(90, rng))
    noise = rng.uniform(0.008, 0.02)
    image = np.hypot(image + rng.normal(0, noise, grid.shape), rng.normal(0, noise, grid.shape))
    units = rng.uniform(400, 1500)
    return (np.maximum(image * units, 1) * tissue.mask).astype(np.float32)


def _normal_enhancement(grid: _Grid, tissue: _Tissue, rng: np.random.Generator) -> Array:
    """Return what takes up contrast agent in any brain: dura, sinuses, falx and choroid plexus."""
    surface = np.exp(-np.maximum(tissue.depth, 0) / (0.7 * grid.spacing))
    patches = _sigmoid(1.5 * grid.smooth_noise(25, rng) + 0.2)
    dura = 0.38 * surface * patches
    near_midline = np.exp(-((tissue.midline / (0.8 * grid.spacing + 1)) ** 2))
    sinus = 0.75 * near_midline * np.exp(-np.maximum(tissue.depth, 0) / 5.0)
    falx = 0.22 * near_midline * tissue.fluid
    plexus = 0.55 * tissue.ventricles * _sigmoid(4 * (grid.smooth_noise(10, rng) - 0.7))
    return np.clip(dura + sinus + falx, 0, 0.8) * tissue.mask + plexus


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
