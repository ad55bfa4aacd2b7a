"""No score on training patients without a word."""

import json

import pytest

from prod9.data.splits import Split
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import find_volumes
from tests.cli.test_evaluate import evaluate, write_flat, write_patients

DIGEST = "ab" * 32
PATIENTS = [f"BraTS-GLI-{k:05d}" for k in range(6)]


@pytest.fixture
def real(tmp_path):
    return write_patients(tmp_path / "real", 6, names=("t1n",))


def result(folder):
    return json.loads((folder / "evaluation.json").read_text())


def write_run_beside(folder, *, train, test, digest=DIGEST):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt.sha256").write_text(f"{digest}  last.ckpt\n")
    Split(tuple(train), (), tuple(test)).save(folder / "split.json")


def made_by(folder, digest=DIGEST):
    write_flat(folder, 4)
    manifest = {"settings": {"command": "generate label", "sha256": {"transformer": digest}}, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a5_without_a_split_it_says_that_nothing_is_known(real, tmp_path):
    ran = evaluate(
        "images", real, write_flat(tmp_path / "made", 4), "-o", tmp_path / "out", "--replicates", 0
    )
    assert "not known on which patients the model was trained" in ran.err
    assert "--split" in ran.err
    found = result(tmp_path / "out")
    assert found["sets"]["real"]["training_patients"] == {
        "known": False,
        "count": None,
        "of": 6,
        "source": None,
    }
    assert any("not known" in warning for warning in found["warnings"])


def test_a5_with_a_split_the_test_patients_alone_are_compared_and_the_others_named(real, tmp_path):
    file = tmp_path / "split.json"
    Split(tuple(PATIENTS[:3]), tuple(PATIENTS[3:4]), (*PATIENTS[4:], "BraTS-GLI-99999")).save(file)
    made = write_flat(tmp_path / "made", 4)
    ran = evaluate("images", real, made, "--split", file, "-o", tmp_path / "out", "--replicates", 0)
    found = result(tmp_path / "out")
    assert found["sets"]["real"]["training_patients"]["count"] == 0
    assert found["patients"]["real"] == 2
    assert "not known" not in ran.err
    assert "4 volumes left out" in ran.err
    assert len(found["left_out"][0]["files"]) == 4
    assert "1 of 3 test patients are not there: BraTS-GLI-99999" in ran.err


@pytest.mark.parametrize("place", ["made", "runs/a/made", "runs/made"])
def test_a5_the_run_that_made_the_volumes_tells(real, tmp_path, place):
    write_run_beside(tmp_path / "runs" / "stage2", train=PATIENTS[:4], test=PATIENTS[4:])
    made = made_by(tmp_path / place)
    ran = evaluate("images", real, made, "-o", tmp_path / "out", "--replicates", 0)
    told = result(tmp_path / "out")["sets"]["real"]["training_patients"]
    if place == "made":  # runs two folders away belong to somebody else
        assert not told["known"]
        return
    assert (told["count"], told["of"]) == (4, 6)
    assert "4 of the 6 real patients were trained or selected on" in ran.err
    assert str(tmp_path / "runs" / "stage2" / "split.json") in ran.err


def test_a5_a_run_that_made_other_volumes_tells_nothing(real, tmp_path):
    write_run_beside(tmp_path / "stage2", train=PATIENTS, test=[], digest="cd" * 32)
    made = made_by(tmp_path / "made")
    assert find_training_patients(find_volumes(real), made).patients is None


def test_a5_a_split_of_another_model_does_not_hide_what_is_known(real, tmp_path):
    write_run_beside(tmp_path / "stage2", train=PATIENTS[3:], test=[])
    made, file = made_by(tmp_path / "made"), tmp_path / "other.json"
    Split(tuple(PATIENTS[:3]), (), tuple(PATIENTS[3:])).save(file)
    ran = evaluate("images", real, made, "--split", file, "-o", tmp_path / "out", "--replicates", 0)
    assert "3 of the 3 real patients were trained or selected on" in ran.err


def test_a5_damaged_manifests_and_splits_are_no_error(real, tmp_path):
    made = write_flat(tmp_path / "made", 4)
    for text in ("[" * 100_000, "[]", '{"settings": 3}', "{"):
        (made / "manifest.json").write_text(text)
        assert find_training_patients(find_volumes(real), made).patients is None
    write_run_beside(tmp_path / "stage2", train=PATIENTS, test=[])
    (tmp_path / "stage2" / "split.json").write_text("{")
    made_by(made)
    assert find_training_patients(find_volumes(real), made).patients is None
