"""What is written on the voxels of a file has the geometry of that file, byte for byte, whatever it says."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from prod9 import volumes
from prod9.nifti.headers import Scaling
from tests.harness import Workspace, run
from tests.nifti_files import geometry_bytes, header_of, write_raw

SHAPE = (5, 4, 6)
MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""Millimetres of each unit of length in ``xyzt_units``."""
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def affines(unit: int) -> st.SearchStrategy[np.ndarray]:
    """Affines of any orientation and tilt, 3 to 9 mm a voxel, in the unit of the file."""

    def build(
        axes: list[int], signs: list[int], turn: list[float], size: list[float], at: list[float]
    ) -> np.ndarray:
        a, b = turn
        tilt = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
            [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
        )
        affine = np.eye(4)
        affine[:3, :3] = tilt @ (np.eye(3)[axes] * signs) @ np.diag(size)
        affine[:3, 3] = at
        affine[:3] /= MM[unit]
        return affine

    return st.builds(
        build,
        st.permutations([0, 1, 2]),
        st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3),
        st.lists(st.floats(-0.6, 0.6), min_size=2, max_size=2),
        st.lists(st.floats(3, 9), min_size=3, max_size=3),
        st.lists(st.floats(-200, 200), min_size=3, max_size=3),
    )


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    unit = draw(st.sampled_from([0, 1, 2, 3]))
    return {
        "version": draw(st.sampled_from([1, 2])),
        "order": draw(st.sampled_from("<>")),
        "qform": draw(affines(unit)),
        "sform": draw(affines(unit)),
        "qform_code": draw(st.integers(0, 4)),
        "sform_code": draw(st.integers(0, 4)),
        "xyzt_units": unit + draw(st.sampled_from([0, 8, 16, 24])),
        "dim_info": draw(st.integers(0, 63)),
        "intent_code": draw(st.sampled_from([0, 5, 1002])),
        "descrip": b"how the scan was made",
        "scl_slope": draw(st.sampled_from([1.0, 0.0, float("nan"), 2.0, 0.5, -0.25, 0.1])),
        "scl_inter": draw(st.sampled_from([0.0, 10.0, -1024.0])),
    }


def itk_geometry(path: Path) -> Any:
    """Return what SimpleITK says of a file, or that it refuses it."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return "refused"
    return image.GetSize()[:3], image.GetSpacing()[:3], image.GetOrigin()[:3], image.GetDirection()


@settings(max_examples=80)
@given(
    header=headers(),
    dtype=st.sampled_from(
        ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]
    ),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    trailing=st.sampled_from([(), (1,), (1, 1)]),
)
def test_a15_the_geometry_of_a_reference_comes_back(
    header: dict[str, Any], dtype: str, suffix: str, trailing: tuple[int, ...]
) -> None:
    data = np.random.default_rng(0).integers(0, 100, SHAPE + trailing).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, f"source{suffix}"), Path(folder, f"out{suffix}")
        write_raw(source, data, **header)
        if header["sform_code"] == header["qform_code"] == 0:
            sizes = header_of(source)["pixdim"][1:4] * MM[header["xyzt_units"] & 7]
        file = volumes.read(source)
        volumes.write(out, file.data, file.header)
        again = volumes.read(out)

        assert geometry_bytes(out) == geometry_bytes(source)
        assert header_of(out)["dim"].tolist() == [3, *SHAPE, 1, 1, 1, 1]
        assert b"scan" not in np.asarray(header_of(out)["descrip"]).tobytes()
        np.testing.assert_array_equal(again.data, file.data)
        np.testing.assert_array_equal(again.header.affine, file.header.affine)
        if header["sform_code"] == header["qform_code"] == 0:
            np.testing.assert_allclose(file.header.spacing, sizes, rtol=1e-5)
            assert file.header.space == 0
        else:
            form = header["sform" if header["sform_code"] else "qform"].copy()
            form[:3] *= MM[header["xyzt_units"] & 7]
            np.testing.assert_allclose(file.header.affine, form, rtol=1e-4, atol=1e-3)

        one, other = nib.load(source), nib.load(out)
        np.testing.assert_array_equal(other.affine, one.affine)
        assert other.header.get_xyzt_units()[0] == one.header.get_xyzt_units()[0]
        np.testing.assert_allclose(
            other.get_fdata(), one.get_fdata().reshape(SHAPE), rtol=1e-6, atol=1e-6 * 1024
        )
        if not trailing:
            assert itk_geometry(out) == itk_geometry(source)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint16", "float32", "float64"])
@pytest.mark.parametrize(
    ("slope", "inter"), [(1, 0), (0.5, -10), (-2, 100), (1e-3, 0), (3.7, -1024), (1e6, 1)]
)
def test_a15_values_come_back_in_the_references_own_storage(
    tmp_path: Path, dtype: str, slope: float, inter: float
) -> None:
    stored = np.random.default_rng(1).integers(0, 127, SHAPE).astype(dtype)
    source = write_raw(
        tmp_path / "a.nii.gz", stored, sform=np.diag([4.0, 4, 4, 1]), scl_slope=slope, scl_inter=inter
    )
    file = volumes.read(source)
    np.testing.assert_allclose(
        file.data, stored * np.float32(slope) + np.float32(inter), rtol=1e-5, atol=1e-4
    )
    assert file.header.scaling == Scaling(float(np.float32(slope)), inter)
    volumes.write(
        tmp_path / "b.nii.gz", file.data, file.header, dtype=file.header.dtype, scaling=file.header.scaling
    )
    again = volumes.read(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(again.data, file.data, rtol=1e-6)
    if np.issubdtype(stored.dtype, np.integer):
        np.testing.assert_array_equal(
            np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj.get_unscaled()), stored
        )


def test_a15_a_header_of_other_voxels_is_not_given_back(tmp_path: Path) -> None:
    affine = np.diag([4.0, 4, 4, 1])
    source = write_raw(
        tmp_path / "a.nii", np.zeros(SHAPE, np.int16), sform=affine, sform_code=4, xyzt_units=2
    )
    header = volumes.read_header(source)
    resampled = replace(header, shape=(2, 2, 3), affine=np.diag([8.0, 8, 8, 1]))
    volumes.write(tmp_path / "b.nii", np.zeros((2, 2, 3)), resampled)
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").affine, resampled.affine)


def test_a15_a_channel_of_a_4d_file_is_a_volume_of_its_own(tmp_path: Path) -> None:
    data = np.random.default_rng(2).normal(size=(*SHAPE, 3)).astype(np.float32)
    source = write_raw(
        tmp_path / "a.nii.gz",
        data,
        sform=np.diag([4.0, 4, 4, 1]),
        sform_code=4,
        intent_code=1007,
        intent_name=b"v",
    )
    file = volumes.read(source, channel=volumes.Channel("T2", 1, 3))
    np.testing.assert_array_equal(file.data, data[..., 1])
    volumes.write(tmp_path / "b.nii.gz", file.data, file.header)
    made = header_of(tmp_path / "b.nii.gz")
    assert int(made["sform_code"]) == 4
    assert int(made["intent_code"]) == 0  # one volume is no vector


ODD: dict[str, dict[str, Any]] = {
    "no orientation": {"qform_code": 0, "sform_code": 0},
    "MNI, aligned": {"qform_code": 2, "sform_code": 4},
    "q-form alone": {"qform_code": 3, "sform_code": 0},
    "micrometres": {"unit": 3, "qform_code": 1, "sform_code": 1},
    "metres, NIfTI-2, big-endian": {"unit": 1, "version": 2, "order": ">", "qform_code": 1, "sform_code": 1},
    "scaled integers": {"scl_slope": 0.5, "scl_inter": -3.0},
}


@pytest.fixture(params=ODD)
def odd_scan(request: pytest.FixtureRequest, workspace: Workspace, tmp_path: Path) -> Path:
    """A scan of the cohort with another header around the same voxels."""
    case = sorted(workspace.cohort.iterdir())[0]
    image = nib.load(case / f"{case.name}-t1n.nii.gz")
    fields = dict(ODD[request.param])
    unit = fields.pop("unit", 2)
    affine = image.affine.copy()
    affine[:3] /= MM[unit]
    shifted = affine.copy()
    shifted[:3, 3] += 7 / MM[unit]
    data = np.asarray(image.dataobj)
    return write_raw(
        tmp_path / "scan.nii.gz", data, qform=affine, sform=shifted, **{"xyzt_units": unit | 16, **fields}
    )


def test_a15_infer_keeps_the_geometry_of_each_file(
    workspace: Workspace, odd_scan: Path, tmp_path: Path
) -> None:
    ran = run("prod9-train-autoencoder", "infer", odd_scan, "--model", workspace.run1, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    (made,) = (tmp_path / "out").glob("*.nii.gz")
    assert geometry_bytes(made) == geometry_bytes(odd_scan)
    assert itk_geometry(made) == itk_geometry(odd_scan)


def test_a15_inpainting_keeps_geometry_and_storage(
    workspace: Workspace, odd_scan: Path, tmp_path: Path
) -> None:
    file = volumes.read(odd_scan)
    region = np.zeros(file.header.shape)
    region[6:10, 7:11, 5:9] = 1
    volumes.write(tmp_path / "region.nii.gz", region, file.header, dtype=np.uint8)
    ran = run(
        *("prod9", "generate", "inpaint", "--model", workspace.run2, "--source", odd_scan, "--label", "T1"),
        *("--region", tmp_path / "region.nii.gz", "-o", tmp_path / "out"),
    )
    assert ran.code == 0, ran.err
    (made,) = (tmp_path / "out").glob("*.nii.gz")
    assert geometry_bytes(made) == geometry_bytes(odd_scan)
    for name in ("datatype", "scl_slope", "scl_inter"):
        assert header_of(made)[name] == header_of(odd_scan)[name]
    one, other = (np.asarray(nib.load(path).dataobj.get_unscaled()) for path in (odd_scan, made))
    np.testing.assert_array_equal(other[region == 0], one[region == 0])
