"""A name that a file said never leads out of the folder that it is used in."""

import csv
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.config.load import load_config
from prod9.errors import ConfigError, DataError
from prod9.files import inside, is_plain_name
from tests.harness import run

ESCAPES = [
    "../evil",
    "../../evil",
    "a/../../evil",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a//b",
    "a/",
    "C:\\x",
    "C:x",
]
ESCAPES += ["..\\evil", "a\\..\\..\\evil", "\\\\host\\share\\x", "a\0b", "a\nb", "a\x1b[2Jb", "./a"]


@pytest.mark.parametrize("name", ESCAPES)
def test_r8_a_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(DataError, match="expected a name"):
        inside("out", name)


@pytest.mark.parametrize(
    "name", ["T1_0000.nii.gz", "case/case-t1n.nii.gz", "a b", "Zoë", "...", "..a", "a..b"]
)
def test_r8_honest_names_stay(name):
    assert inside("out", name) == Path("out") / name


@given(st.text(alphabet="ab./\\:~ é", max_size=12))
def test_r8_whatever_is_taken_lies_inside(name):
    try:
        path = inside("/out", name)
    except DataError:
        return
    assert Path("/out") in path.resolve().parents


@pytest.mark.parametrize("name", ["a/b", "a\\b", "../x", "", "a\nb"])
def test_r8_a_config_names_no_label_that_is_a_path(name):
    assert not is_plain_name(name)
    changes = [("data.modalities", [name]), ("data.label_map", {name: 0})]
    with pytest.raises(ConfigError, match="leave out slashes"):
        load_config("demo/stage1", overrides=changes)


def files_outside(folder):
    return {path for path in folder.rglob("*") if "evil" in path.name or "escaped" in path.name}


@pytest.mark.parametrize("place", ["data", "config"])
@pytest.mark.parametrize("label", ["../../evil", "/tmp/evil-of-a-test", "a/../../evil"])
def test_r8_a_checkpoint_writes_nowhere_else(models, tmp_path, place, label):
    content = torch.load(models.label / "checkpoints" / "last.ckpt", weights_only=True)
    header = content["prod9"]
    (header["data"] if place == "data" else header["config"]["data"])["label_map"] = {label: 0}
    if place == "config":
        header["config"]["data"]["modalities"] = [label]
    evil = tmp_path / "in" / "evil.ckpt"
    evil.parent.mkdir()
    torch.save(content, evil)
    before = files_outside(tmp_path)
    out = tmp_path / "a" / "b"
    ran = run("prod9", "generate", "label", "-m", evil, "--autoencoder", models.stage1, "-o", out)
    assert ran.code in (1, 2)
    assert "expected a name" in ran.err or "leave out slashes" in ran.err
    assert "Traceback" not in ran.err
    assert files_outside(tmp_path) == before
    assert not Path("/tmp/evil-of-a-test_0000.nii.gz").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped-of-a-test", "..\\..\\escaped"])
def test_r9_a_list_writes_nowhere_else(models, workspace, tmp_path, name):
    case = sorted(workspace.cohort.iterdir())[0]
    rows = {"case": name, "T1": case / f"{case.name}-t1n.nii.gz", "T1ce": case / f"{case.name}-t1c.nii.gz"}
    table = tmp_path / "list.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows)
        writer.writeheader()
        writer.writerow(rows)
    out = tmp_path / "a" / "b"
    command = ("prod9", "generate", "translate", "-m", models.translator, "--patient", table)
    ran = run(*command, "-o", out, "--target", "T2")
    assert ran.code in (1, 2)
    assert "escaped" in ran.err
    assert not files_outside(tmp_path)
    assert not Path("/tmp/escaped-of-a-test").exists()
    assert not out.exists()
