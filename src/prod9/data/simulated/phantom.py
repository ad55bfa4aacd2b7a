"""One simulated patient: a deformed MNI152 anatomy, a glioma in some, and four contrasts."""

from dataclasses import dataclass

import numpy as np

from prod9.data.simulated.anatomy import Array, Grid, Tissue, deform, sample_tissue, sigmoid
from prod9.data.simulated.glioma import Glioma, Shares

# white matter, grey matter, fluid, oedema, necrosis, enhancing rim; a mean of 1 is about the 99th percentile
CONTRASTS: dict[str, tuple[float, ...]] = {
    "T1": (0.86, 0.62, 0.24, 0.58, 0.36, 0.60),
    "T1ce": (0.80, 0.59, 0.26, 0.56, 0.34, 1.10),
    "T2": (0.38, 0.56, 1.00, 0.82, 0.86, 0.64),
    "FLAIR": (0.50, 0.64, 0.16, 0.98, 0.42, 0.78),
}
TISSUE_JITTER = 0.035
"""Standard deviation of each tissue's mean from scan to scan."""


@dataclass(frozen=True)
class Phantom:
    """One patient: ``scans`` float32 ``[H W D]`` by modality, ``seg`` uint8 (labels 1, 2, 3), RAS affine.

    Scans are above 0 in the brain and exactly 0 outside. ventricle_ml, tumour_ml: volumes.
    grey: bool ``[H W D]``, grey matter, to compare patients with.
    """

    scans: dict[str, Array]
    seg: Array
    affine: Array
    grey: Array
    ventricle_ml: float
    tumour_ml: float


def make_phantom(*, spacing_mm: float, with_tumour: bool, rng: np.random.Generator) -> Phantom:
    """Make a patient on an isotropic grid; everything random comes from ``rng``."""
    grid, tissue, tumour = _make_brain(spacing_mm, with_tumour, rng)
    labels = np.zeros(tissue.white.shape, np.uint8) if tumour is None else tumour.labels()
    seg = _scatter(labels, tissue)
    scans = {name: _scan(name, grid, tissue, tumour, rng) for name in CONTRASTS}
    voxel_ml = spacing_mm**3 / 1000
    return Phantom(
        scans=scans,
        seg=seg,
        affine=grid.affine,
        grey=_scatter(tissue.grey > 0.5, tissue),
        ventricle_ml=float(tissue.ventricles.sum() * voxel_ml),
        tumour_ml=float((seg > 0).sum() * voxel_ml),
    )


def grey_matter(*, spacing_mm: float, with_tumour: bool, rng: np.random.Generator) -> Array:
    """Return ``grey`` of the patient that :func:`make_phantom` makes from the same arguments, without scans."""
    _, tissue, _ = _make_brain(spacing_mm, with_tumour, rng)
    return _scatter(tissue.grey > 0.5, tissue)


def _make_brain(
    spacing_mm: float, with_tumour: bool, rng: np.random.Generator
) -> tuple[Grid, Tissue, Shares | None]:
    grid = Grid(spacing_mm)
    position = deform(grid, rng)
    glioma = Glioma.draw(position, rng) if with_tumour else None
    if glioma is None:
        return grid, sample_tissue(grid, position, rng), None
    tissue = sample_tissue(grid, glioma.displace(position), rng)
    return grid, tissue, glioma.shares(grid, tissue, rng)


def _scan(
    modality: str, grid: Grid, tissue: Tissue, tumour: Shares | None, rng: np.random.Generator
) -> Array:
    """Return one scan: its own contrast, bias field, noise and units."""
    means = np.asarray(CONTRASTS[modality]) + rng.normal(0, TISSUE_JITTER, 6)
    white, grey, fluid, oedema, necrosis, rim = means.astype(np.float32)
    image = white * tissue.white + grey * tissue.grey + fluid * tissue.fluid
    if modality == "T1ce":
        image += _normal_enhancement(grid, tissue, rng)
    if tumour is not None:
        texture = 1 + 0.06 * grid.smooth_noise(9, rng)[tissue.mask]
        # Some of the tissue stays visible in oedema.
        wet, solid = 0.85 * tumour.oedema, tumour.enhancing + tumour.necrosis
        lesion = oedema * wet + rim * tumour.enhancing + necrosis * tumour.necrosis
        image = image * (1 - wet - solid) + lesion * texture
    image *= np.exp(0.07 * grid.smooth_noise(90, rng)[tissue.mask])
    noise = rng.uniform(0.008, 0.02)
    real, imaginary = rng.normal(0, noise, (2, image.size)).astype(np.float32)
    image = np.hypot(image + real, imaginary)  # Rician, as magnitude images have it
    units = rng.uniform(400, 1500)
    return _scatter(np.maximum(image * np.float32(units), 1), tissue)


def _normal_enhancement(grid: Grid, tissue: Tissue, rng: np.random.Generator) -> Array:
    """Return the contrast agent taken up in every brain: by dura, sinuses, falx and choroid plexus."""
    depth = np.maximum(tissue.depth, 0)
    surface = np.exp(-depth / (0.7 * grid.spacing))
    patches = sigmoid(1.5 * grid.smooth_noise(25, rng)[tissue.mask] + 0.2)
    near_midline = np.exp(-((tissue.midline / (0.8 * grid.spacing + 1)) ** 2))
    sinus = 0.75 * near_midline * np.exp(-depth / 5.0)
    falx = 0.22 * near_midline * tissue.fluid
    plexus = 0.55 * tissue.ventricles * sigmoid(4 * (grid.smooth_noise(10, rng)[tissue.mask] - 0.7))
    return np.clip(0.38 * surface * patches + sinus + falx, 0, 0.8) + plexus


def _scatter(values: Array, tissue: Tissue) -> Array:
    """Put ``values [n]`` of the brain's voxels into a volume that is 0 elsewhere."""
    volume = np.zeros(tissue.mask.shape, values.dtype)
    volume[tissue.mask] = values
    return volume
