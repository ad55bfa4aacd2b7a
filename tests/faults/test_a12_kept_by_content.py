"""What is kept of an earlier run is of the same inputs, by content; two results never share a name."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from prod9 import volumes
from prod9.cli.generate.outputs import OutputFolder, digest_of, inputs_of, require_distinct
from prod9.errors import ConfigError
from tests.harness import run


@pytest.fixture
def case(workspace, tmp_path):
    source = sorted(workspace.cohort.iterdir())[0]
    return Path(copytree(source, tmp_path / "in" / source.name))


def file_of(case, word):
    return case / f"{case.name}-{word}.nii.gz"


def replace(path, *, factor=None, by=None):
    """Put another scan under the same name."""
    file = volumes.read(path)
    data = file.data * factor if by is None else by(file.data)
    volumes.write(path, data, file.header.affine, dtype=np.float32, overwrite=True)


def squared(data):
    return (data / data.max()) ** 2 * 100


def again(*command):
    first = run(*command, "--json")
    assert first.code == 0, first.err
    kept = run(*command, "--json")
    assert kept.json["made"] == []
    return first.json["made"]


def contents(folder, names):
    return [(folder / name).read_bytes() for name in names]


def test_a12_infer_makes_a_replaced_scan_anew(models, case, tmp_path):
    out, scan = tmp_path / "out", file_of(case, "t1n")
    command = ("prod9-train-autoencoder", "infer", scan, "-m", models.stage1, "-o", out, "--save-tokens")
    made = again(*command)
    before = contents(out, made)
    replace(scan, by=squared)
    ran = run(*command, "--json")
    assert ran.json["made"] == made
    assert contents(out, made) != before
    assert "has changed: source" in ran.err
    assert run(*command, "--json").json["made"] == []


def test_a12_translate_makes_a_replaced_scan_anew(models, case, tmp_path):
    out = tmp_path / "out"
    file_of(case, "t2f").unlink()
    command = ("prod9", "generate", "translate", "-m", models.translator, "--patient", case, "-o", out)
    made = again(*command)
    replace(file_of(case, "t2w"), by=squared)
    ran = run(*command, "--json")
    assert ran.json["made"] == made
    assert "has changed: T2" in ran.err


def test_a12_control_follows_a_replaced_segmentation(models, case, tmp_path):
    out, seg = tmp_path / "out", file_of(case, "seg")
    command = ("prod9", "generate", "control", "-m", models.control, "--seg", seg, "--label", "T1", "-o", out)
    made = again(*command)
    placed = out / f"{case.name}_seg.nii.gz"
    before = placed.read_bytes()
    replace(seg, by=lambda labels: np.where(labels > 0, 2, 0))
    ran = run(*command, "--json")
    assert ran.json["made"] == made
    assert placed.read_bytes() != before, "the segmentation beside it is the new one, too"


def test_a12_control_takes_more_segmentations_into_a_folder(models, workspace, tmp_path):
    out, (one, other) = tmp_path / "out", sorted(workspace.cohort.rglob("*-seg.nii.gz"))[:2]
    command = ("prod9", "generate", "control", "-m", models.control, "--label", "T1", "-o", out, "--json")
    run(*command, "--seg", one)
    ran = run(*command, "--seg", one, "--seg", other)
    assert (len(ran.json["made"]), ran.json["kept"]) == (1, 1)


def test_a12_inpaint_looks_at_all_its_files(models, case, tmp_path):
    out, scan, region = tmp_path / "out", file_of(case, "t1n"), tmp_path / "region.nii.gz"
    file = volumes.read(scan)
    box = np.zeros(file.header.shape)
    box[6:10, 7:11, 5:9] = 1
    volumes.write(region, box, file.header.affine, dtype=np.uint8)
    command = ("prod9", "generate", "inpaint", "-m", models.label, "--source", scan, "--region", region)
    command = (*command, "--label", "T1", "-o", out)
    made = again(*command)
    replace(region, by=lambda data: np.roll(data, 1, axis=0))
    assert run(*command, "--json").json["made"] == made
    replace(scan, by=squared)
    assert run(*command, "--json").json["made"] == made


def test_a12_patients_follow_a_replaced_segmentation(models, case, tmp_path):
    out, seg = tmp_path / "out", file_of(case, "seg")
    command = (
        "prod9",
        "generate",
        "patients",
        "-n",
        1,
        "-m",
        models.label,
        "--in-context",
        models.translator,
    )
    command = (*command, "--control", models.control, "--seg", seg, "-o", out)
    made = again(*command)
    replace(seg, by=lambda labels: np.where(labels > 0, 2, 0))
    assert run(*command, "--json").json["made"] == made


def test_a12_examples_count_by_content(models, workspace, case, tmp_path):
    out = tmp_path / "out"
    example = Path(copytree(sorted(workspace.cohort.iterdir())[1], tmp_path / "shown" / "EX-001"))
    for path in example.iterdir():
        path.rename(path.with_name(path.name.replace(sorted(workspace.cohort.iterdir())[1].name, "EX-001")))
    file_of(case, "t2f").unlink()
    command = ("prod9", "generate", "translate", "-m", models.translator, "--patient", case, "-o", out)
    again(*command, "--example", example)
    replace(next(example.glob("*-t2f*")), by=squared)
    ran = run(*command, "--example", example, "--json")
    assert ran.code == 2
    assert "other settings" in ran.err


def test_a12_patients_of_one_name_are_refused_before_any_work(models, case, tmp_path):
    other = Path(copytree(case, tmp_path / "elsewhere" / case.name))
    for one in (case, other):
        file_of(one, "t2f").unlink()
    out = tmp_path / "out"
    command = ("prod9", "generate", "translate", "-m", models.translator, "-o", out)
    for check in ((), ("--check",)):
        ran = run(*command, "--patient", case, "--patient", other, *check)
        assert ran.code == 2
        assert f"{case.name}-t2f.nii.gz" in ran.err
        assert str(case) in ran.err
        assert str(other) in ran.err
        assert not out.exists()


def test_a12_another_scan_of_the_same_name_does_not_replace_a_result(models, case, tmp_path):
    out, scan = tmp_path / "out", file_of(case, "t1n")
    other = tmp_path / "other" / scan.name
    other.parent.mkdir()
    other.write_bytes(scan.read_bytes())
    command = ("prod9-train-autoencoder", "infer", "-m", models.stage1, "-o", out)
    again(*command, scan)
    assert run(*command, other, "--json").json["made"] == [], "the same content is the same result"
    replace(other, by=squared)
    ran = run(*command, other)
    assert ran.code == 2
    assert str(scan) in ran.err
    assert "--overwrite" in ran.err
    assert run(*command, other, "--overwrite", "--json").json["made"] == [scan.name]


# -- the mechanism --------------------------------------------------------------------------------


def make(folder, name, text, **noted):
    with folder.writing(name, **noted) as path:
        path.write_text(text)


def test_a12_a_crash_between_note_and_file_leaves_nothing_that_passes_for_done(tmp_path):
    source = tmp_path / "scan"
    source.write_text("one")
    with OutputFolder(tmp_path / "out", {"seed": 0}) as folder:
        make(folder, "a/b.txt", "of one", inputs=inputs_of({"scan": source}))
    source.write_text("two")
    now = inputs_of({"scan": source})
    with pytest.raises(RuntimeError), OutputFolder(tmp_path / "out", {"seed": 0}) as folder:  # noqa: SIM117
        with folder.writing("a/b.txt", inputs=now):
            raise RuntimeError
    assert (tmp_path / "out" / "a" / "b.txt").read_text() == "of one"
    with OutputFolder(tmp_path / "out", {"seed": 0}) as folder:
        assert not folder.is_done("a/b.txt", now)
        make(folder, "a/b.txt", "of two", inputs=now)
        assert folder.is_done("a/b.txt", now)
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]) == {"a/b.txt"}


def test_a12_a_source_more_or_less_is_another_content(tmp_path):
    for name in "xy":
        (tmp_path / name).write_text(name)
    one, both = inputs_of({"x": tmp_path / "x"}), inputs_of({"x": tmp_path / "x", "y": tmp_path / "y"})
    with OutputFolder(tmp_path / "out", {}) as folder:
        make(folder, "r", "…", inputs=one)
        assert folder.is_done("r", one)
        assert not folder.is_done("r", both)
        assert not folder.is_done("r")


def test_a12_a_folder_in_which_nothing_was_made_takes_any_settings(tmp_path):
    with OutputFolder(tmp_path / "out", {"seed": 0}):
        pass
    with OutputFolder(tmp_path / "out", {"seed": 1}) as folder:
        make(folder, "r", "…")
    with pytest.raises(ConfigError, match="other settings"):
        OutputFolder(tmp_path / "out", {"seed": 0})


def test_a12_digests_tell_arrays_apart():
    zeros = np.zeros((2, 3))
    others = (zeros + 1, zeros.T, zeros.astype(np.float32), None, np.zeros((3, 2))[:2])
    digests = {digest_of(zeros), *map(digest_of, others), digest_of(zeros, None), digest_of(None, zeros)}
    assert len(digests) == 8
    assert digest_of(np.asfortranarray(zeros)) == digest_of(zeros)


def test_a12_doubled_names_are_refused():
    with pytest.raises(ConfigError, match="p and q would both become a"):
        require_distinct([("a", "p"), ("b", "p"), ("a", "q")])
