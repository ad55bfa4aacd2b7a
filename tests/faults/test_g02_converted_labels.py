"""Converting BraTS 2012 to 2015 into its own form turned all necrosis (1) into tumour that does not enhance (3)."""

import nibabel as nib
import numpy as np
import pytest

from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture
def old_cohort(tmp_path):
    """One patient with the names and the five labels of 2012 to 2015."""
    (case,) = write_brats_tree(tmp_path / "new", 1, layout="brats2021")
    folder = tmp_path / "old" / "brats_2013_pat0001_1"
    folder.mkdir(parents=True)
    for path in case.iterdir():
        image = nib.load(path)
        data = np.asarray(image.dataobj).astype(np.uint8 if "seg" in path.name else np.int16)
        if "seg" in path.name:
            data[tuple(np.argwhere(data == 2)[0])] = 3
        nib.save(nib.Nifti1Image(data, image.affine), folder / path.name.replace(case.name, folder.name))
    return tmp_path / "old"


def labels_in(folder):
    (path,) = folder.rglob("*[-_]seg.nii.gz")
    return np.asarray(nib.load(path).dataobj)


def test_labels_of_the_same_scheme_stay(old_cohort, tmp_path):
    assert run("prod9", "data", "convert", old_cohort, tmp_path / "out", "--format", "brats").code == 0
    before, after = labels_in(old_cohort), labels_in(tmp_path / "out")
    assert sorted(np.unique(before)) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(after, before)


def test_a_label_with_two_values_takes_the_first(old_cohort, tmp_path):
    """Read as BraTS 2021 without its 3, the necrosis of a patient with an old name stays 1."""
    (path,) = old_cohort.rglob("*seg.nii.gz")
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[data == 3] = 0
    nib.save(nib.Nifti1Image(data, image.affine), path)
    options = ("--format", "brats", "--label-scheme", "brats2021")
    assert run("prod9", "data", "convert", old_cohort, tmp_path / "out", *options).code == 0
    np.testing.assert_array_equal(labels_in(tmp_path / "out"), data)
