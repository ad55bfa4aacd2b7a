"""Axial and sagittal scans of 1 × 1 × 3 mm counted as scans of one voxel size, so nothing asked to resample them."""

import json

import nibabel as nib
import numpy as np
import pytest

from prod9.data.layouts.find import find_cases
from prod9.errors import DataError
from prod9.training.data.brats import check_spacing
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture
def mixed(tmp_path):
    """Return two patients with thick slices, axial ones and sagittal ones."""
    cases = write_brats_tree(tmp_path / "scans", 2, (18, 18, 18))
    for case, thick in zip(cases, (2, 0), strict=True):
        for path in case.iterdir():
            image = nib.load(path)
            data = np.asarray(image.dataobj)
            affine = image.affine.copy()
            affine[:3, thick] *= 2
            nib.save(nib.Nifti1Image(data, affine), path)
    return tmp_path / "scans"


def test_they_are_told_apart_and_resampled(mixed, tmp_path):
    ran = run("prod9", "data", "check", mixed)
    assert "voxel sizes (along RAS) differ: 4×4×8 mm in 1" in " ".join(ran.out.split())
    assert run("prod9", "data", "info", mixed, "--output", tmp_path / "info.json").code == 0
    assert json.loads((tmp_path / "info.json").read_text())["resample"] is True


def test_training_refuses_them_where_nothing_is_resampled(mixed):
    with pytest.raises(DataError, match=r"^data.spacing: expected one spacing .* got 4×4×8 mm"):
        check_spacing(find_cases(mixed))


def test_one_size_stored_along_other_axes_is_one(mixed, tmp_path):
    """The sagittal scans, stored as slices from left to right or from below, have the same voxels."""
    for path in list(mixed.glob("*00000-000/*.nii.gz")):
        image = nib.load(path)
        turned = nib.Nifti1Image(np.asarray(image.dataobj).transpose(2, 0, 1), image.affine[:, [2, 0, 1, 3]])
        nib.save(turned, path)
    for path in list(mixed.glob("*00001-000/*.nii.gz")):
        image = nib.load(path)
        affine = image.affine.copy()
        affine[:3, 0] /= 2
        affine[:3, 2] *= 2
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    assert "differ" not in run("prod9", "data", "check", mixed).out
