"""Small files for tests: BraTS-like folders of brains a few voxels wide, written in milliseconds."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

# Brightness of tissue by modality, in the order T1, T1ce, T2, FLAIR.
_TISSUE = (500.0, 620.0, 380.0, 300.0)
# Stored axes run left, back and up, as in the challenge's own files: reading to RAS has to flip two.
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])

_SUFFIXES = {
    "brats2018": ("t1", "t1ce", "t2", "flair"),
    "brats2019": ("t1", "t1ce", "t2", "flair"),
    "brats2020": ("t1", "t1ce", "t2", "flair"),
    "brats2021": ("t1", "t1ce", "t2", "flair"),
    "brats2023": ("t1n", "t1c", "t2w", "t2f"),
}
_CASE_NAMES: dict[str, Callable[[int, int], str]] = {
    "brats2018": lambda patient, _: f"HGG/Brats18_TCIA{patient:02d}_{patient:03d}_1",
    "brats2019": lambda patient, _: f"LGG/BraTS19_2013_{patient}_1",
    "brats2020": lambda patient, _: f"BraTS20_Training_{patient + 1:03d}",
    "brats2021": lambda patient, _: f"BraTS2021_{patient:05d}",
    "brats2023": lambda patient, time: f"BraTS-GLI-{patient:05d}-{time:03d}",
}


def write_brats_tree(
    root: Path,
    num_patients: int,
    shape: tuple[int, int, int] = (16, 18, 14),
    *,
    layout: str = "brats2023",
    time_points: int = 1,
    with_seg: bool = True,
    spacing: float = 4.0,
    seed: int = 0,
) -> list[Path]:
    """Write ``num_patients`` skull-stripped four-modality cases below ``root`` and return their folders.

    Voxels are int16, exactly 0 outside an off-centre ellipsoid brain that differs by patient. The lesion's
    enhancing label is 4 up to 2021 and 3 from 2023, as in the challenges. ``time_points`` above 1 gives a
    patient several cases (``brats2023`` only).
    """
    if time_points > 1 and layout != "brats2023":
        raise ValueError("only the brats2023 names hold a time point")
    folders = []
    for patient in range(num_patients):
        for time in range(time_points):
            case = root / _CASE_NAMES[layout](patient, time)
            _write_case(case, shape, layout, with_seg, spacing, np.random.default_rng((seed, patient, time)))
            folders.append(case)
    return folders


def write_medmnist3d(
    root: Path,
    counts: tuple[int, int, int] = (6, 3, 3),
    *,
    name: str = "organmnist3d",
    size: int = 28,
    num_classes: int = 11,
) -> Path:
    """Write a small file in the format of MedMNIST3D and return it: blobs whose size tells the class."""
    arrays = {}
    for place, (part, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        rng = np.random.default_rng(place)  # no sample is in two parts
        labels = (np.arange(count) % num_classes).astype(np.uint8)
        distance = np.linalg.norm(
            np.stack(np.meshgrid(*[np.arange(size) - size / 2] * 3, indexing="ij")), axis=0
        )
        blobs = [distance < size / 4 + label / num_classes * size / 6 for label in labels]
        noisy = [np.where(blob, rng.integers(120, 255, distance.shape), rng.integers(0, 40, distance.shape))
                 for blob in blobs]  # fmt: skip
        arrays |= {f"{part}_images": np.asarray(noisy, dtype=np.uint8), f"{part}_labels": labels[:, None]}
    root.mkdir(parents=True, exist_ok=True)
    path = root / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    np.savez_compressed(path, **arrays)
    return path


def _write_case(
    case: Path,
    shape: tuple[int, int, int],
    layout: str,
    with_seg: bool,
    spacing: float,
    rng: np.random.Generator,
) -> None:
    case.mkdir(parents=True)
    size = np.asarray(shape, dtype=np.float64)
    centre = size * rng.uniform(0.45, 0.55, 3)
    axes = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    brain = (((axes - centre) / (size * rng.uniform(0.3, 0.4, 3))) ** 2).sum(-1) <= 1.0
    distance = np.sqrt(((axes - centre - [size[0] / 8, 0, 0]) ** 2).sum(-1))
    enhancing = 3 if layout == "brats2023" else 4
    seg = np.select([distance < 1.0, distance < 2.0, distance < 3.0], [1, enhancing, 2], 0) * brain

    affine = _AFFINE @ np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (size - 1) * spacing / 2 * [1, 1, -1]
    sep = "-" if layout == "brats2023" else "_"
    for suffix, tissue in zip(_SUFFIXES[layout], _TISSUE, strict=True):
        bright = tissue + 60.0 * seg + rng.normal(0.0, 40.0, shape)
        image = np.where(brain, np.clip(bright, 1, None), 0)
        _save(image, affine, case / f"{case.name}{sep}{suffix}.nii.gz")
    if with_seg:
        _save(seg, affine, case / f"{case.name}{sep}seg.nii.gz")


def _save(data: np.ndarray, affine: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti1Image(data.astype(np.int16), affine), path)
