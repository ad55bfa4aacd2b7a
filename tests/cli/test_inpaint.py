"""``prod9 generate inpaint``: a region drawn anew in a file, every other voxel untouched."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from prod9 import volumes
from tests.harness import Ran, Workspace, next_of, run


@pytest.fixture
def source(workspace: Workspace) -> Path:
    case = sorted(workspace.cohort.iterdir())[0]
    return case / f"{case.name}-t1n.nii.gz"


@pytest.fixture
def region(source: Path, tmp_path: Path) -> Path:
    file = volumes.read(source)
    data = np.zeros(file.header.shape)
    data[6:10, 7:11, 5:9] = 1
    path = tmp_path / "region.nii.gz"
    volumes.write(path, data, file.header.affine, dtype=np.uint8)
    return path


def inpaint(workspace: Workspace, *args: object) -> Ran:
    return run("prod9", "generate", "inpaint", "--model", workspace.folder / "stage2", *args)


def test_a_region_is_drawn_anew_and_nothing_else(
    workspace: Workspace, source: Path, region: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("--source", source, "--region", region, "--label", "T1", "-o", out, "--json")
    ran = inpaint(workspace, *given, "--num-samples", 2, "--top-p", 0.9, "--remasking", 0.3)
    assert ran.code == 0, ran.err
    stem = source.name.removesuffix(".nii.gz")
    assert ran.json["made"] == [f"{stem}_0000.nii.gz", f"{stem}_0001.nii.gz"]
    before, where = nib.load(source), nib.load(region).get_fdata() != 0
    raw = np.asarray(before.dataobj)
    for name in ran.json["made"]:
        made = nib.load(out / name)
        assert made.get_data_dtype() == before.get_data_dtype()
        np.testing.assert_array_equal(made.affine, before.affine)
        voxels = np.asarray(made.dataobj)
        assert np.array_equal(voxels[~where], raw[~where])
        assert not np.array_equal(voxels[where], raw[where])
        itk = sitk.GetArrayFromImage(sitk.ReadImage(str(out / name))).T
        assert np.array_equal(itk, voxels)
    again = inpaint(workspace, *given, "--num-samples", 3, "--top-p", 0.9, "--remasking", 0.3)
    assert again.json["made"] == [f"{stem}_0002.nii.gz"]
    assert again.json["kept"] == 2
    assert next_of(inpaint(workspace, *given[:-1], "--top-p", 0.9, "--remasking", 0.3))[1:3] == (
        "app",
        "--model",
    )
    other = inpaint(workspace, *given, "--seed", 1)
    assert other.code == 2
    assert "--overwrite" in other.err


def test_what_does_not_fit_is_refused(
    workspace: Workspace, source: Path, region: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(*args: object) -> str:
        given = ("--source", source, "--label", "T1", "-o", out)
        ran = inpaint(workspace, *given, *args)
        assert ran.code != 0
        assert not list(out.glob("*.nii.gz"))
        return ran.err

    file = volumes.read(region)
    moved = file.header.affine.copy()
    moved[:3, 3] += 500.0
    elsewhere = tmp_path / "elsewhere.nii.gz"
    volumes.write(elsewhere, file.data, moved, dtype=np.uint8)
    assert str(elsewhere) in refused("--region", elsewhere)
    assert "outside of the volume" in refused("--region", elsewhere, "--resample")
    empty = tmp_path / "empty.nii.gz"
    volumes.write(empty, file.data * 0, file.header.affine, dtype=np.uint8)
    assert "got none" in refused("--region", empty)
    assert "T1, T1ce, T2, FLAIR" in refused("--region", region, "--label", "PET")
    assert "--control RUN" in refused("--region", region, "--healthy")
    assert "no such file" in refused("--region", tmp_path / "missing.nii.gz")


def test_check_writes_nothing(workspace: Workspace, source: Path, region: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = inpaint(
        workspace, "--source", source, "--region", region, "--label", "T1", "-o", out, "--check", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json["region"] == 64
    assert not out.exists()
