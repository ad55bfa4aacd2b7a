"""Simulated heads with their skull, and how exactly their scans are registered.

    python -m tests.data.skulls [--patients 6] [--spacing 3]

prints, over patients, how far brain voxels are off: between scans of a patient that were moved by known transforms, and
on the atlas, against the transform that is found for the same brain without its skull.
"""

import argparse

import numpy as np
import scipy.ndimage as ndi

from prod9.data.registration.atlas import load_atlas
from prod9.data.registration.geometry import Placed, apply
from prod9.data.registration.rigid import register
from prod9.data.simulated.phantom import Phantom, make_phantom

MOST_DEGREES, MOST_MM = 15.0, 25.0
SHELLS_MM = (3.0, 9.0, 17.0)
"""Outer surfaces of fluid, bone and scalp, from that of the brain."""
SHELLS = {"T1": (0.2, 0.12, 1.1), "T1ce": (0.2, 0.12, 1.1), "T2": (1.0, 0.1, 0.6), "FLAIR": (0.15, 0.1, 0.7)}
"""Their intensities; a mean of 1 is about the 99th percentile of the brain."""


def with_skull(phantom: Phantom, spacing_mm: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the scans of ``phantom`` with fluid, bone and scalp around the brain, and noise in the air."""
    heads = {}
    for name, shells in SHELLS.items():
        scan = phantom.scans[name]
        brain = np.asarray(ndi.binary_fill_holes(scan > 0), dtype=bool)
        distance = np.asarray(ndi.distance_transform_edt(~brain)) * spacing_mm
        top = np.percentile(scan[scan > 0], 99)
        head, inner = scan.astype(np.float64), 0.0
        for outer, value in zip(SHELLS_MM, shells, strict=True):
            ring = (distance > inner) & (distance <= outer)
            texture = 1 + 0.1 * ndi.gaussian_filter(rng.standard_normal(scan.shape), 1.5) * 5
            head[ring] = (value * top * texture)[ring]
            inner = outer
        noise = rng.normal(0, 0.015 * top, (2, *scan.shape))
        heads[name] = np.hypot(head + noise[0], noise[1]).astype(np.float32)
    return heads


def moved(rng: np.random.Generator) -> np.ndarray:
    """Return a random rigid transform, 4×4."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-MOST_DEGREES, MOST_DEGREES, 3))):
        first, second = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, 3] = rng.uniform(-MOST_MM, MOST_MM, 3) / np.sqrt(3)
    return matrix


def errors_mm(seed: int, spacing_mm: float) -> tuple[float, float]:
    """Return the mean error of brain voxels in mm: between T1ce and FLAIR, and of T1ce on the atlas."""
    rng = np.random.default_rng(seed)
    phantom = make_phantom(spacing_mm=spacing_mm, with_tumour=True, rng=rng)
    heads, moves = with_skull(phantom, spacing_mm, rng), (moved(rng), moved(rng))
    fixed = Placed(heads["T1ce"], moves[0] @ phantom.affine)
    moving = Placed(heads["FLAIR"], moves[1] @ phantom.affine)
    points = apply(phantom.affine, np.argwhere(phantom.scans["T1"] > 0)[::11].astype(float))
    size = max(spacing_mm, 2.0)
    found = register(fixed, moving, working_mm=size).matrix
    between = np.linalg.inv(moves[1]) @ found @ moves[0]
    atlas = load_atlas("mni152", spacing_mm=spacing_mm)
    stripped = Placed(phantom.scans["T1ce"], moves[0] @ phantom.affine)
    placed = [
        register(atlas.scan, volume, mask=atlas.compared, working_mm=size).matrix
        for volume in (fixed, stripped)
    ]
    other = np.linalg.inv(placed[1]) @ placed[0]
    there = apply(np.linalg.inv(placed[0]) @ moves[0], points)
    return tuple(
        float(np.linalg.norm(apply(matrix, at) - at, axis=1).mean())
        for matrix, at in ((between, points), (other, there))
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--spacing", type=float, default=3.0)
    asked = parser.parse_args()
    rows = np.asarray([errors_mm(seed, asked.spacing) for seed in range(asked.patients)])
    for name, column in zip(("between scans", "on the atlas"), rows.T, strict=True):
        print(f"{name}: median {np.median(column):.2f} mm, largest {column.max():.2f} mm, N {len(column)}")


if __name__ == "__main__":
    main()
