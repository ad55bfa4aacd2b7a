"""The geometry contract: a volume may be stored along any axes and at any angle, and comes back where it was.

SimpleITK, which shares no code with what is tested, says where a voxel lies.
"""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its usual name)
from nibabel.orientations import aff2axcodes, apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from prod9.data.cases import Case
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.volumes import from_ras, read, to_ras, write
from tests.pipelines.test_reconstruction import build

ORDERS = [
    "".join(letters[sign] for letters, sign in zip(axes, signs, strict=True))
    for axes in permutations(("RL", "AP", "SI"))
    for signs in product((0, 1), repeat=3)
]
SHAPE = (10, 12, 14)
SPACING = (1.0, 2.0, 3.3)
ANGLES = {"straight": 0.0, "oblique": 0.3}


def brain() -> np.ndarray:
    """Int16 [10 12 14] without any symmetry, 0 around it."""
    data = np.zeros(SHAPE, dtype=np.int16)
    data[2:7, 3:10, 4:12] = np.random.default_rng(0).integers(100, 1000, (5, 7, 8))
    return data


def ras_affine(angle: float) -> np.ndarray:
    """Anisotropic voxels, turned by ``angle`` radians about two axes, off the origin."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING)
    affine[:3, 3] = (-20.0, 11.0, 5.5)
    return affine


def stored(order: str, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the brain and its affine along the axes of ``order``."""
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(order))
    return apply_orientation(brain(), transform), ras_affine(angle) @ inv_ornt_aff(transform, SHAPE)


def same_place(a: Path, b: Path) -> None:
    """Assert that SimpleITK finds the same voxels at the same points in both files."""
    first, second = sitk.ReadImage(str(a)), sitk.ReadImage(str(b))
    assert first.GetSize() == second.GetSize()
    for get in (sitk.Image.GetOrigin, sitk.Image.GetSpacing, sitk.Image.GetDirection):
        np.testing.assert_allclose(get(first), get(second), atol=1e-4)
    values = [sitk.GetArrayFromImage(image).astype(np.float64) for image in (first, second)]
    np.testing.assert_allclose(values[0], values[1], atol=0.05)


@pytest.mark.parametrize("kind", ANGLES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_comes_back_exactly(tmp_path: Path, order: str, kind: str) -> None:
    data, affine = stored(order, ANGLES[kind])
    path = tmp_path / f"{order}.nii.gz"
    write(path, data, affine, dtype=np.int16)
    assert "".join(aff2axcodes(affine)) == order
    # The brightest voxel lies where SimpleITK says, in LPS.
    itk = sitk.ReadImage(str(path))
    voxel = np.unravel_index(int(np.argmax(data)), data.shape)
    point = np.array(itk.TransformIndexToPhysicalPoint([int(i) for i in voxel])) * [-1, -1, 1]
    np.testing.assert_allclose(point, (affine @ [*voxel, 1])[:3], atol=1e-3)
    assert itk[[int(i) for i in voxel]] == data.max()
    # Reading, turning to RAS and back changes nothing.
    file = read(path)
    turned, turned_affine = to_ras(file.data, file.header.affine)
    np.testing.assert_array_equal(turned, brain())
    np.testing.assert_allclose(turned_affine, ras_affine(ANGLES[kind]), atol=1e-4)
    np.testing.assert_array_equal(from_ras(turned, file.header), data)
    write(tmp_path / "again.nii", from_ras(turned, file.header), file.header.affine, dtype=np.int16)
    same_place(path, tmp_path / "again.nii")


@pytest.mark.parametrize("kind", ANGLES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_model_puts_its_volume_where_the_input_was(tmp_path: Path, order: str, kind: str) -> None:
    data, affine = stored(order, ANGLES[kind])
    path = tmp_path / "in.nii.gz"
    write(path, data, affine, dtype=np.int16)
    pipeline, mirror = build((12, 12, 12), intensity=IntensityScaling("percentile", 0.0, 100.0))
    result = pipeline.reconstruct(path)
    # Whatever the order, the network sees one and the same brain.
    expected, reference = build((12, 12, 12), intensity=IntensityScaling("percentile", 0.0, 100.0))
    write(tmp_path / "ras.nii.gz", brain(), ras_affine(ANGLES[kind]), dtype=np.int16)
    expected.reconstruct(tmp_path / "ras.nii.gz")
    np.testing.assert_array_equal(mirror.seen.numpy(), reference.seen.numpy())
    write(tmp_path / "out.nii.gz", result.data, result.header.affine)
    same_place(path, tmp_path / "out.nii.gz")


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
@pytest.mark.parametrize("order", ORDERS[::5])
def test_training_sees_one_brain_whatever_the_order(
    tmp_path: Path, order: str, spacing: tuple[float, float, float] | None
) -> None:
    off = dict.fromkeys(("flip_prob", "bias_field_prob", "gamma_prob", "scale_prob", "affine_prob"), 0.0)
    builder = TransformBuilder(
        spacing=spacing,
        grid=(16, 16, 16),
        crop_size=None,
        intensity=IntensityScaling("percentile", 0.0, 100.0),
        augment=Augmentation(**off),
    )
    seen = []
    for name in ("RAS", order):
        write(tmp_path / f"{name}.nii.gz", *stored(name, 0.0), dtype=np.int16)
        paths = {"T1": tmp_path / f"{name}.nii.gz"}
        case = Case("a", "a", images=paths, seg=None, layout="datalist", label_scheme="canonical")
        placed = builder.build_preprocessing(["T1"]).place(case)
        seen.append((placed.images["T1"], placed.affine))
    np.testing.assert_allclose(seen[1][0], seen[0][0], atol=2e-3)
    np.testing.assert_allclose(seen[1][1], seen[0][1], atol=1e-3)
