"""Folder forms that prod9 writes, read back by its own readers."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9 import volumes
from prod9.data.formats.convert import carry_out, plan_work, read_cases
from prod9.data.formats.form import Name
from prod9.data.formats.nnunet import SPLITS, make_splits
from prod9.data.formats.table import FORMS, form_of
from prod9.data.labels import canonical_seg
from prod9.data.layouts.find import find_cases
from prod9.errors import ConfigError, DataError
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats") / "cohort"
    write_brats_tree(root, 6)
    return root


def voxels(root: Path) -> dict[tuple[str, str], tuple[bytes, bytes, str]]:
    """Return raw voxels, affine and type of every file by its place in the order of cases and its modality."""
    found = {}
    for place, case in enumerate(find_cases(root)):
        files = case.images | ({"seg": case.seg} if case.seg else {})
        for name, path in files.items():
            image = nib.load(path)
            found[str(place), name] = (
                np.asarray(image.dataobj.get_unscaled()).tobytes(),
                np.asarray(image.affine).tobytes(),
                str(image.get_data_dtype()),
            )
    return found


@pytest.mark.parametrize("name", FORMS)
def test_round_trips_are_exact(cohort: Path, tmp_path: Path, name: str) -> None:
    ran = run("prod9", "data", "convert", cohort, tmp_path / "there", "--format", name, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["cases"] == 6
    back = run(
        "prod9", "data", "convert", tmp_path / "there", tmp_path / "back", "--format", "brats", "--json"
    )
    assert back.code == 0, back.err
    assert voxels(cohort) == voxels(tmp_path / "there") == voxels(tmp_path / "back")
    # Visits of a patient stay together.
    names = [(case.patient_id, case.time_point) for case in find_cases(tmp_path / "there")]
    assert len(set(names)) == 6
    assert not list(tmp_path.glob(".tmp-*"))


def test_values_that_mean_something_else_are_mapped(cohort: Path, tmp_path: Path) -> None:
    """BraTS until 2021 writes 4 for the enhancing tumour."""
    old = tmp_path / "old"
    for number, case in enumerate(find_cases(cohort)[:2]):
        folder = old / f"BraTS2021_{number:05d}"
        folder.mkdir(parents=True)
        for word, path in zip(("t1", "t1ce", "t2", "flair"), case.images.values(), strict=True):
            (folder / f"{folder.name}_{word}.nii.gz").write_bytes(path.read_bytes())
        assert case.seg is not None
        file = volumes.read(case.seg)
        labels = np.where(file.data == 3, 4, file.data)
        volumes.write(folder / f"{folder.name}_seg.nii.gz", labels, file.header, dtype=np.uint8)
    expected = [_canonical(case.seg, case.label_scheme) for case in find_cases(old)]
    assert any(3 in one for one in expected)
    for name in FORMS:
        cases, _ = read_cases(old)
        carry_out(plan_work(form_of(name), cases, [], folds=2), tmp_path / name, about={})
        found = [_canonical(case.seg, case.label_scheme) for case in find_cases(tmp_path / name)]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    described = json.loads((tmp_path / "nnunet" / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 3}


def _canonical(seg: Path | None, scheme: str) -> np.ndarray:
    assert seg is not None
    return canonical_seg(volumes.read(seg).data, scheme, seg)


def test_synthetic_cases_train_in_every_fold_and_validate_in_none(cohort: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for number, case in enumerate(find_cases(cohort)[:3]):
        folder = made / f"BraTS-SYN-{number:05d}-000"
        folder.mkdir(parents=True)
        for path in case.files:
            (folder / path.name.replace(case.case_id, folder.name)).write_bytes(path.read_bytes())
    patients = [case.patient_id for case in find_cases(cohort)]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"format": 1, "train": patients[1:], "val": [], "test": patients[:1]}))
    out = tmp_path / "out"
    ran = run(
        "prod9", "data", "convert", cohort, out, "--format", "nnunet", "--synthetic", made, "--split", split, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    folds = json.loads((out / SPLITS).read_text())
    synthetic = {f"BraTS-SYN-{number:05d}-000" for number in range(3)}
    held = [case for fold in folds for case in fold["val"]]
    assert len(folds) == 5
    assert sorted(held) == sorted(set(held))
    assert len(held) == 5
    for fold in folds:
        assert synthetic <= set(fold["train"])
        assert not synthetic & set(fold["val"])
        assert len(fold["train"]) + len(fold["val"]) == 5 + 3
    described = json.loads((out / "dataset.json").read_text())
    assert set(described["synthetic_cases"]) == synthetic
    assert described["numTraining"] == 8 == len(list((out / "labelsTr").iterdir()))
    assert [path.name for path in (out / "labelsTs").iterdir()] == [f"{patients[0]}-000.nii.gz"]
    assert len(list((out / "imagesTs").iterdir())) == 4
    # What is synthetic is known in the new folder too.
    assert read_cases(out)[1] == synthetic


def test_visits_of_a_patient_share_a_fold() -> None:
    names = [Name(f"P{k}-{visit}", f"P{k}") for k in range(7) for visit in range(2)]
    splits = make_splits(names, [Name("S", "S")], folds=5, seed=3)
    assert splits == make_splits(list(reversed(names)), [Name("S", "S")], folds=5, seed=3)
    assert splits != make_splits(names, [Name("S", "S")], folds=5, seed=4)
    for fold in splits:
        patients = {name.partition("-")[0] for name in fold["val"]}
        assert patients.isdisjoint(name.partition("-")[0] for name in fold["train"])
        assert len(fold["val"]) in (2, 4)


def test_bad_input_leaves_nothing(cohort: Path, tmp_path: Path) -> None:
    def refused(root: Path, *args: object, code: int = 1) -> str:
        ran = run("prod9", "data", "convert", root, tmp_path / "out", *args)
        assert ran.code == code, ran.err
        assert not (tmp_path / "out").exists()
        return " ".join(ran.err.split())

    assert "at least 7 real patients" in refused(cohort, "--format", "nnunet", "--folds", 7, code=2)
    assert "expected brats, nnunet, bids" in refused(cohort, "--format", "dicom", code=2)
    assert "--skip-incomplete" in refused(cohort, "--format", "bids", "--skip-incomplete", code=2)
    assert "real or synthetic" in refused(
        cohort, "--format", "bids", "--synthetic", _one(cohort, tmp_path), code=2
    )
    assert "expected each case once" in refused(cohort, "--format", "nnunet", "--synthetic", cohort)
    other = tmp_path / "other"
    write_brats_tree(other, 6)
    case = find_cases(other)[2]
    case.images["T2"].unlink()
    assert f"{case.case_id} lacks T2" in refused(other, "--format", "nnunet")
    assert case.seg is not None
    file = volumes.read(case.seg)
    moved = file.header.affine.copy()
    moved[0, 3] += 1
    volumes.write(case.seg, file.data, moved, dtype=np.uint8)
    assert "expected the voxels of" in refused(other, "--format", "nnunet", "--modality", "T1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    ran = run("prod9", "data", "convert", cohort, tmp_path / "out", "--format", "brats")
    assert ran.code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def _one(cohort: Path, tmp_path: Path) -> Path:
    case = find_cases(cohort)[0]
    folder = tmp_path / "one" / "BraTS-SYN-00000-000"
    folder.mkdir(parents=True)
    for path in case.files:
        (folder / path.name.replace(case.case_id, folder.name)).write_bytes(path.read_bytes())
    return tmp_path / "one"


def test_labels_that_are_no_glioma(cohort: Path) -> None:
    cases = find_cases(cohort)
    as_is = [replace(case, label_scheme="as_is") for case in cases]
    assert plan_work(form_of("nnunet"), as_is, []).labels == {"label 1": 1, "label 2": 2, "label 3": 3}
    with pytest.raises(ConfigError, match="labels of a glioma"):
        plan_work(form_of("bids"), as_is, [])
    with pytest.raises(ConfigError, match="mean the same"):
        plan_work(form_of("nnunet"), [*cases[:5], as_is[5]], [])
    with pytest.raises(DataError, match="5 cases without"):
        plan_work(form_of("nnunet"), [replace(case, seg=None) for case in cases[1:]] + cases[:1], [], folds=0)
    odd = [replace(case, images={**case.images, "CT": case.images["T1"]}) for case in cases]
    with pytest.raises(ConfigError, match="CT too"):
        plan_work(form_of("brats"), odd, [])
