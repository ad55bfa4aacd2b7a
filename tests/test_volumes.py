"""NIfTI in and out: geometry that agrees with other software, and files that must be refused."""

import gzip
import itertools
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its usual name)

from prod9 import volumes
from prod9.errors import DataError

SHAPE = (5, 6, 7)
TWO_MM = np.diag([2.0, 2.0, 2.0, 1.0])
"""An affine with which ``SHAPE`` is more than 1 cm long."""
ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]
DIM, DATATYPE, PIXDIM, QFORM_CODE, SROW_X = 40, 70, 76, 252, 280
"""Byte offsets of NIfTI-1 header fields."""


def oblique(orientation: str = "RAS", spacing: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> np.ndarray:
    """Return an affine near ``orientation``, rotated by some degrees, with an origin."""
    ras = (
        np.array([{"R": 1, "L": -1}.get(c, 0) for c in orientation]),
        *(np.array([{up: 1, down: -1}.get(c, 0) for c in orientation]) for up, down in ("AP", "SI")),
    )
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.stack(ras) @ np.diag(spacing)
    affine[:3, 3] = (-40, 25.5, 7)
    return affine


def a_volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.float32)


def patched(folder: Path, *changes: tuple[int, str, tuple[float, ...]], name: str = "bad.nii") -> Path:
    """Write a good file, overwrite header fields (offset, struct format, values), and return its path."""
    nib.save(nib.Nifti1Image(a_volume().astype(np.int16), oblique()), folder / "good.nii")
    content = bytearray((folder / "good.nii").read_bytes())
    for offset, layout, values in changes:
        struct.pack_into(f"<{layout}", content, offset, *values)
    (folder / name).write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))
    return folder / name


def refusal(path: Path, match: str) -> str:
    with pytest.raises(DataError, match=match) as caught:
        volumes.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- geometry ----


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_round_trip(tmp_path: Path, orientation: str) -> None:
    data, affine = a_volume(), oblique(orientation)
    volumes.write(tmp_path / "a.nii", data, affine)
    file = volumes.read(tmp_path / "a.nii")
    assert file.header.orientation == orientation
    np.testing.assert_allclose(file.header.spacing, (1, 2, 3), rtol=1e-6)
    np.testing.assert_allclose(file.header.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(file.data, data)

    ras, ras_affine = volumes.to_ras(file.data, file.header.affine)
    assert "".join(nib.orientations.aff2axcodes(ras_affine)) == "RAS"
    # The same voxel stands at the same place of the world.
    index = (1, 2, 3)
    inside = np.linalg.inv(ras_affine) @ file.header.affine @ (*index, 1)
    assert ras[tuple(np.rint(inside[:3]).astype(int))] == data[index]
    np.testing.assert_array_equal(volumes.from_ras(ras, file.header), data)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL", "ARI"])
def test_simpleitk_agrees(tmp_path: Path, orientation: str) -> None:
    data, affine = a_volume(), oblique(orientation)
    volumes.write(tmp_path / "a.nii.gz", data, affine)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert image.GetSize() == SHAPE
    np.testing.assert_allclose(image.GetSpacing(), (1, 2, 3), rtol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), data)
    # ITK's world is LPS+.
    world = np.diag([-1, -1, 1]) @ image.TransformIndexToPhysicalPoint((4, 3, 2))
    np.testing.assert_allclose(world, (affine @ (4, 3, 2, 1))[:3], atol=1e-4)


def test_both_forms_are_set(tmp_path: Path) -> None:
    affine = oblique("LPS")
    volumes.write(tmp_path / "a.nii", a_volume(), affine)
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"


def test_scaled_integers_are_read_as_what_they_mean(tmp_path: Path) -> None:
    image = nib.Nifti1Image(a_volume().astype(np.int16), TWO_MM)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = nib.load(tmp_path / "a.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.nii.gz").data, stored)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_header_says_what_is_stored(tmp_path: Path, dtype: str) -> None:
    volumes.write(tmp_path / "a.nii", a_volume() % 200, TWO_MM, dtype=dtype)
    assert volumes.read_header(tmp_path / "a.nii").dtype == dtype
    assert volumes.read(tmp_path / "a.nii").data.dtype == np.float32


def test_a_trailing_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(a_volume()[..., None, None], TWO_MM), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.nii.gz").data, a_volume())


@pytest.mark.parametrize("name", ["with space.nii", "Gehirn-Größe.nii.gz", "a.b.nii.gz", "UPPER.NII.GZ"])
def test_any_name(tmp_path: Path, name: str) -> None:
    volumes.write(tmp_path / name, a_volume(), TWO_MM)
    np.testing.assert_array_equal(volumes.read(tmp_path / name).data, a_volume())


# ---- writing ----


def test_rounds_to_integers(tmp_path: Path) -> None:
    volumes.write(tmp_path / "a.nii", np.full(SHAPE, 1.6), TWO_MM, dtype=np.int16)
    assert volumes.read(tmp_path / "a.nii").data.max() == 2


@pytest.mark.parametrize(("value", "dtype"), [(300, np.uint8), (-1, np.uint16), (np.nan, np.int16)])
def test_refuses_values_that_do_not_fit(tmp_path: Path, value: float, dtype: type) -> None:
    with pytest.raises(DataError, match=r"a\.nii: .*(values that fit|finite)"):
        volumes.write(tmp_path / "a.nii", np.full(SHAPE, value), TWO_MM, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ending in \.nii or \.nii\.gz"):
        volumes.write(tmp_path / "a.png", a_volume(), TWO_MM)
    with pytest.raises(DataError, match="3D array"):
        volumes.write(tmp_path / "a.nii", a_volume()[0], TWO_MM)
    volumes.write(tmp_path / "a.nii", a_volume(), TWO_MM)
    with pytest.raises(DataError, match="expected no such file"):
        volumes.write(tmp_path / "a.nii", a_volume(), TWO_MM, overwrite=False)


# ---- damaged and unsuitable files ----


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_gzip(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.nii.gz"
    volumes.write(path, a_volume(), TWO_MM)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refusal(path, "copy or download it again")


def test_a_flipped_bit_in_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(patched(tmp_path).read_bytes(), compresslevel=0))
    content = bytearray(path.read_bytes())
    content[-20] ^= 4  # a voxel: uncompressed, so only the checksum can tell
    path.write_bytes(content)
    refusal(path, "damaged")


def test_truncated_plain_file(tmp_path: Path) -> None:
    path = patched(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refusal(path, "expected 210 voxels of int16, but the file ends early")


def test_more_content_than_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(patched(tmp_path).read_bytes() + bytes(50_000_000)))
    refusal(path, "once decompressed")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>404</html>", b"\x1f\x8b\x08nothing", b"\0" * 400]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_not_an_image(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name, "expected a NIfTI file")


def test_missing_file_folder_and_other_format(tmp_path: Path) -> None:
    refusal(tmp_path / "absent.nii.gz", "no such file")
    (tmp_path / "a.dcm").write_text("x")
    refusal(tmp_path / "a.dcm", "dcm2niix")
    (tmp_path / "folder.nii").mkdir()
    refusal(tmp_path / "folder.nii", "expected a NIfTI file")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_counted(tmp_path: Path, value: float, count: int) -> None:
    data = a_volume()
    data.flat[:count] = value
    volumes.write(tmp_path / "a.nii.gz", data, TWO_MM)
    refusal(tmp_path / "a.nii.gz", f"got {count} NaN or infinite of 210")
    kept = volumes.read(tmp_path / "a.nii.gz", allow_non_finite=True).data
    np.testing.assert_array_equal(kept, data)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((5, 6), "2D of shape"),
        ((5, 6, 1), ""),
        ((5, 6, 7, 4), "one file per modality"),
        ((5, 6, 7, 1, 3), "5D"),
    ],
)
def test_number_of_axes(tmp_path: Path, shape: tuple[int, ...], match: str) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), TWO_MM), tmp_path / "a.nii.gz")
    if match:
        refusal(tmp_path / "a.nii.gz", match)
    else:
        assert volumes.read(tmp_path / "a.nii.gz").data.shape == shape


@pytest.mark.parametrize("name", ["bad.nii", "bad.nii.gz"])
@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ((3, 32767, 32767, 32767, 1, 1, 1, 1), "expected at most"),
        ((3, -5, 6, 7, 1, 1, 1, 1), "positive sides"),
        ((3, 5, 0, 7, 1, 1, 1, 1), "positive sides"),
        ((2, 5, 6, 7, 1, 1, 1, 1), "got 2D"),
    ],
)
def test_dimensions_are_refused_before_reading(
    tmp_path: Path, dims: tuple[int, ...], match: str, name: str
) -> None:
    path = patched(tmp_path, (DIM, "8h", dims), name=name)
    refusal(path, match)
    with pytest.raises(DataError, match=match):
        volumes.read_header(path)


def test_the_limit_on_voxels_can_be_set(tmp_path: Path) -> None:
    path = patched(tmp_path)
    assert volumes.read_header(path, max_voxels=210).shape == SHAPE
    with pytest.raises(DataError, match="at most 209 voxels"):
        volumes.read(path, max_voxels=209)


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_no_real_numbers(tmp_path: Path, dtype: object) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype), TWO_MM), tmp_path / "a.nii")
    refusal(tmp_path / "a.nii", "integer or real voxels")


def test_unknown_dtype(tmp_path: Path) -> None:
    refusal(patched(tmp_path, (DATATYPE, "h", (7777,))), "bad.nii: expected")


@pytest.mark.parametrize(
    "change",
    [
        (SROW_X, "12f", (0.0,) * 12),
        (SROW_X, "12f", (1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)),
        (SROW_X, "12f", (float("nan"),) * 12),
    ],
)
def test_degenerate_affine(tmp_path: Path, change: tuple[int, str, tuple[float, ...]]) -> None:
    refusal(patched(tmp_path, change), "invertible affine")


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_degenerate_voxel_size(tmp_path: Path, size: float) -> None:
    # No s-form and no q-form: the voxel sizes make the affine.
    path = patched(tmp_path, (QFORM_CODE, "2h", (0, 0)), (PIXDIM, "4f", (1, 1, size, 1)))
    refusal(path, "expected")


def test_mgh_is_told_from_nifti(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(a_volume(), TWO_MM), tmp_path / "a.mgz")
    (tmp_path / "a.mgz").rename(tmp_path / "a.nii.gz")
    refusal(tmp_path / "a.nii.gz", "expected a NIfTI file")
