"""Nothing is left out of an audit or a score without a word; an audit with gaps has not passed."""

import json
import shutil

import numpy as np
import pytest

from prod9.data.splits import Split
from prod9.errors import DataError
from prod9.evaluation.sets.volume_sets import BadFiles, find_volumes, match_pairs
from prod9.volumes import write
from tests.cli.test_evaluate import evaluate, write_flat, write_patients
from tests.evaluation.audit_cohort import AFFINE, head, write_heads
from tests.evaluation.report.folders import write_run
from tests.harness import run


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("audit")
    write_heads(root / "train", [head(k) for k in range(6)])
    write_heads(root / "heldout", [head(100 + k) for k in range(9)])
    return root


def audit(cohort, generated, out, *options, code):
    ran = run(
        "prod9", "audit", "--train", cohort / "train", "--heldout", cohort / "heldout", "--generated", generated,
        "--false-alarms", "0.1", "-o", out, *options,
    )  # fmt: skip
    assert ran.code == code, ran.err + ran.out
    return ran, json.loads((out / "audit.json").read_text()) if (out / "audit.json").exists() else None


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, np.asarray(data, dtype=np.float32), AFFINE)


@pytest.mark.parametrize(
    "stranger", ["BraTS-GLI-00001-000-t1n", "patient_flair", "BraTS2021_00003/BraTS2021_00003_t1", "sub/x_t2"]
)
def test_a11_copies_beside_a_file_of_another_kind_of_name_are_found(cohort, tmp_path, stranger):
    made = tmp_path / "made"
    for k in range(3):
        put(made / f"T1_{k:04d}.nii.gz", head(k))
    put(made / f"{stranger}.nii.gz", head(1001))
    _, result = audit(cohort, made, tmp_path / "out", code=1)
    assert result["sets"]["generated"]["volumes"] == 4
    assert sum(pair["suspect"] for pair in result["pairs"]) == 3
    assert not result["passed"]


def test_a11_all_volumes_count_in_any_mixture_of_names(tmp_path):
    names = [
        "T1_0000",
        "case_T2_0001",
        "whatever",
        "BraTS-GLI-00001-000-t1c",
        "x_flair",
        "deep/er/T1_0000",
        "y_t1",
    ]
    for name in names:
        put(tmp_path / f"{name}.nii.gz", head(1))
    for name in ("seg_0000", "BraTS-GLI-00001-000-seg", "x_mask", "y_t1_uncertainty", "only_dseg"):
        put(tmp_path / f"{name}.nii.gz", head(1) > 0)
    entries = find_volumes(tmp_path)
    assert sorted(entry.path.relative_to(tmp_path).as_posix() for entry in entries) == sorted(
        f"{name}.nii.gz" for name in names
    )
    assert len({entry.patient_id for entry in entries}) == len(names)


def test_a11_two_files_of_one_name_are_two_volumes_and_no_pair(tmp_path):
    for folder in ("a", "b"):
        put(tmp_path / folder / "BraTS-GLI-00001-000-t1n.nii.gz", head(1))
    entries = find_volumes(tmp_path)
    assert len(entries) == 2
    assert len({entry.patient_id for entry in entries}) == 1
    with pytest.raises(DataError, match="expected one T1 volume of BraTS-GLI-00001-000 to pair"):
        match_pairs(entries, entries)


def test_a11_samples_of_a_case_are_one_patient(tmp_path):
    for k in range(3):
        put(tmp_path / f"BraTS-GLI-00001-000_t1_{k:04d}.nii.gz", head(k))
    assert {entry.patient_id for entry in find_volumes(tmp_path)} == {"BraTS-GLI-00001"}


def test_a11_a_file_that_a_list_names_and_that_is_gone_is_refused_or_fails_the_audit(cohort, tmp_path):
    made = write_heads(tmp_path / "made", [head(1000 + k) for k in range(4)])
    table = "case,T1\n" + "".join(f"c{k},made/made{k:03d}_t1.nii.gz\n" for k in range(4))
    (tmp_path / "list.csv").write_text(table)
    (made / "made002_t1.nii.gz").unlink()
    ran, _ = audit(cohort, tmp_path / "list.csv", tmp_path / "out", code=1)
    assert "made002_t1.nii.gz" in ran.err
    assert "--skip-bad" in ran.err
    ran, result = audit(cohort, tmp_path / "list.csv", tmp_path / "out", "--skip-bad", code=1)
    assert result["share_suspect"] == 0.0
    assert not result["passed"]
    assert "made002_t1.nii.gz" in result["gaps"][0]
    assert "Not looked at" in ran.err
    assert "not everything was looked at" in ran.err


def test_a11_the_same_of_an_evaluation(tmp_path):
    real = write_flat(tmp_path / "real", 4)
    write_flat(tmp_path / "made", 4)
    table = "case,T1\n" + "".join(f"c{k},made/T1_{k:04d}.nii.gz\n" for k in range(4))
    (tmp_path / "list.csv").write_text(table)
    (tmp_path / "made" / "T1_0002.nii.gz").unlink()
    common = ("images", real, tmp_path / "list.csv", "--replicates", 0)
    assert "T1_0002.nii.gz" in evaluate(*common, "-o", tmp_path / "a", code=1).err
    ran = evaluate(*common, "--skip-bad", "-o", tmp_path / "b")
    result = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert result["sets"]["generated"]["volumes"] == 3
    assert "T1_0002.nii.gz" in result["skipped"][0]["reason"]
    assert "Skipped" in ran.err


def test_a11_links_to_nothing_are_named(cohort, tmp_path):
    made = write_heads(tmp_path / "made", [head(1000), head(1001)])
    (made / "gone_t1.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    ran, _ = audit(cohort, made, tmp_path / "out", code=1)
    assert "gone_t1.nii.gz" in ran.err
    _, result = audit(cohort, made, tmp_path / "out", "--skip-bad", code=1)
    assert not result["passed"]


def test_a11_training_volumes_that_cannot_be_read_fail_the_audit_too(tmp_path):
    write_heads(tmp_path / "train", [head(k) for k in range(6)])
    write_heads(tmp_path / "heldout", [head(100 + k) for k in range(9)])
    (tmp_path / "train" / "train003_t1.nii.gz").write_bytes(b"x")
    made = write_heads(tmp_path / "made", [head(1000), head(1001)])
    _, result = audit(tmp_path, made, tmp_path / "out", "--skip-bad", code=1)
    assert result["share_suspect"] == 0.0
    assert not result["passed"]


def test_a11_training_patients_of_a_run_that_are_not_there_are_named(tmp_path):
    data = write_patients(tmp_path / "cohort", 4, names=("t1n", "t2f"))
    where = write_run(tmp_path, data=data)
    names = [f"BraTS-GLI-{k:05d}" for k in (0, 1, 2, 3, 77)]
    Split((*names[:2], names[4]), (), tuple(names[2:4])).save(where / "split.json")
    bad = BadFiles(skip=False)
    entries = find_volumes(data, bad=bad)
    bad.require_patients(Split.load(where / "split.json").train, entries, "training", data)
    assert bad.gaps == [f"{data}: 1 of 3 training patients are not there: BraTS-GLI-00077"]


def test_a11_what_has_no_counterpart_is_said(tmp_path):
    real = write_patients(tmp_path / "real", 4)
    made = write_patients(tmp_path / "made", 2, names=("t1n",), first=3, noise=5.0)
    ran = evaluate("images", real, made, "--paired", "-o", tmp_path / "out", "--replicates", 0)
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    reasons = {item["reason"]: len(item["files"]) for item in result["left_out"]}
    assert reasons == {
        "generated, without a real volume of the same case to be paired with": 1,
        "real volumes of FLAIR, of which there are no generated ones": 4,
    }
    assert ran.err.count("left out") == 2


def test_a11_the_verdict_is_there_before_the_pictures(cohort, tmp_path, monkeypatch):
    made = write_heads(tmp_path / "made", [head(1000), head(1001)])

    def stop(self, path, voxels):
        assert (tmp_path / "out" / "audit.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("prod9.evaluation.audit.volumes.Audit.write_pictures", stop)
    _, result = audit(cohort, made, tmp_path / "out", code=130)
    assert result["passed"]
    shutil.rmtree(tmp_path / "out")


def test_a11_a_stray_image_of_a_described_layout_is_a_gap(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    put(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", head(1))
    put(tmp_path / "sub-01" / "anat" / "sub-01_run-2_T1w.nii.gz", head(2))
    bad = BadFiles(skip=False)
    assert len(find_volumes(tmp_path, bad=bad)) == 1
    assert "sub-01_run-2_T1w.nii.gz" in bad.gaps[0]
