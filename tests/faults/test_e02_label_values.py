"""Labels keep their values on every way, and whatever is no label is named: nothing is rounded without a word."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from prod9 import volumes
from prod9.data.formats.convert import carry_out, plan_work, read_cases
from prod9.data.formats.form import Form
from prod9.data.formats.table import FORMS, form_of
from prod9.data.layouts.find import find_cases
from prod9.data.lesions import LesionFile
from prod9.data.registration.native import to_native
from prod9.data.registration.record import CaseRecord, ScanRecord
from prod9.errors import DataError
from prod9.nifti.headers import Scaling
from tests.fixtures import write_brats_tree
from tests.harness import run

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A preprocessed case whose scan lies half a voxel beside the atlas."""
    moved = np.eye(4)
    moved[:3, 3] = 1.0
    scan = ScanRecord(
        source="gone.nii.gz", sha256="", channel=None, shape=(12, 12, 12), affine=AFFINE.tolist(),
        to_atlas=moved.tolist(), to_reference=np.eye(4).tolist(), overlap=1.0, information=(0.0, 1.0),
    )  # fmt: skip
    folder = tmp_path / "case"
    folder.mkdir()
    record = CaseRecord(
        case_id="P1",
        reference="T1",
        settings={},
        brain_ml=None,
        mask_sha256=None,
        scans={"T1": scan},
        seg=None,
    )
    record.write(folder)
    return folder


@pytest.mark.parametrize("kind", ["auto", "labels"])
def test_labels_come_back_to_the_scan_in_any_type(case: Path, tmp_path: Path, kind: str) -> None:
    """Programs write masks as float32 too; interpolated, label 4 beside 0 would become 2."""
    labels = np.random.default_rng(0).choice([0.0, 1.0, 4.0], size=(12, 12, 12))
    for dtype, scaling in ((np.float32, Scaling()), (np.uint8, Scaling(0.5, -3.0))):
        source, target = tmp_path / "labels.nii.gz", tmp_path / f"back_{np.dtype(dtype)}.nii.gz"
        volumes.write(source, labels, AFFINE, dtype=dtype, scaling=scaling)
        to_native(source, target, case=case, kind=kind)  # pyrefly: ignore[bad-argument-type]
        back = volumes.read(target)
        assert set(np.unique(back.data)) == {0.0, 1.0, 4.0}
        assert back.header.dtype == dtype


def test_integers_that_stand_for_fractions_are_an_image(case: Path, tmp_path: Path) -> None:
    """A map of few values, stored as scaled integers: rounded to whole numbers, 0.5 would become 0 and 1.5 become 2."""
    shares = np.random.default_rng(0).integers(0, 5, (12, 12, 12)) / 2
    volumes.write(tmp_path / "shares.nii.gz", shares, AFFINE, dtype=np.uint8, scaling=Scaling(0.5, 0.0))
    to_native(tmp_path / "shares.nii.gz", tmp_path / "image.nii.gz", case=case)
    assert np.unique(volumes.read(tmp_path / "image.nii.gz").data).size > 5  # interpolated
    to_native(tmp_path / "shares.nii.gz", tmp_path / "nearest.nii.gz", case=case, kind="labels")
    assert set(np.unique(volumes.read(tmp_path / "nearest.nii.gz").data)) <= {0.0, 0.5, 1.0, 1.5, 2.0}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_brats_tree(tmp_path / "tree", 2)
    return tmp_path / "tree"


def rewrite(tree: Path, *, factor: float = 1.0, added: float = 0.0) -> np.ndarray:
    """Change the lesion of the first case; return the labels before."""
    first = find_cases(tree)[0]
    assert first.seg is not None
    file = volumes.read(first.seg)
    volumes.write(first.seg, file.data * factor + added * (file.data > 0), file.header)
    return file.data


def convert(tree: Path, target: Path, form: Form) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    carry_out(plan_work(form, read_cases(tree)[0], [], folds=0), target, about={})
    return target


@pytest.mark.parametrize("name", FORMS)
def test_converted_labels_are_whole_numbers(tree: Path, tmp_path: Path, name: str) -> None:
    """prod9 takes 0.9999 for 1, as resampling leaves it; a program that cuts the fraction takes it for 0."""
    labels = rewrite(tree, factor=0.9999)
    seg = find_cases(convert(tree, tmp_path / "out", form_of(name)))[0].seg
    assert seg is not None
    np.testing.assert_array_equal(volumes.read(seg).data, labels)


def test_values_that_mean_nothing_are_not_copied(tree: Path, tmp_path: Path) -> None:
    rewrite(tree, added=5)
    with pytest.raises(DataError, match=r"expected labels \[0, 1, 2, 3\] of scheme brats2023, got 6"):
        convert(tree, tmp_path / "out", form_of("nnunet"))
    assert not (tmp_path / "out").exists()


def test_a_split_of_other_patients_puts_nobody_aside(tree: Path, tmp_path: Path) -> None:
    """Without a word, the patients of the test would be trained on."""
    split = tmp_path / "split.json"
    line = ("prod9", "data", "convert", tree, tmp_path / "out", "--format", "nnunet", "--folds", 0)
    split.write_text('{"format": 1, "train": ["A"], "val": [], "test": ["B", "C"]}')
    ran = run(*line, "--split", split)
    assert ran.code == 1
    assert "expected test patients that are among the cases, got none of them (B, C)" in " ".join(
        ran.err.split()
    )
    known = find_cases(tree)[0].patient_id
    split.write_text(f'{{"format": 1, "train": ["A"], "val": [], "test": ["B", "{known}"]}}')
    ran = run(*line, "--split", split)
    assert ran.code == 0, ran.err
    assert "1 of 2 test patients are not among the cases (B)" in " ".join(ran.err.split())
    assert len(list((tmp_path / "out" / "labelsTs").iterdir())) == 1


def test_a_lesion_beside_an_empty_scan_is_named(tmp_path: Path) -> None:
    labels = np.zeros((12, 12, 12))
    labels[4:6, 4:6, 4:6] = 1
    volumes.write(tmp_path / "P1_t1.nii.gz", np.zeros((12, 12, 12)), AFFINE)
    volumes.write(tmp_path / "P1_seg.nii.gz", labels, AFFINE, dtype=np.uint8)
    with pytest.raises(DataError, match=r"P1_t1.*expected a scan of a head, got background only"):
        LesionFile.of(tmp_path / "P1_seg.nii.gz").load()
