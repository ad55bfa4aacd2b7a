"""``prod9 data check`` and ``info`` from outside: text, JSON, page, exit codes, imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.trees import WRITERS
from tests.fixtures import write_brats_tree
from tests.harness import run

_PROBE = """
import sys, time
start = time.process_time()
from prod9.cli.app import app
from prod9.cli.shared import run
code = run(app, ["data", "check", sys.argv[1]])
heavy = [name for name in ("torch", "monai", "lightning", "matplotlib") if name in sys.modules]
assert not heavy, heavy
print(time.process_time() - start)
sys.exit(code)
"""


def test_a_check_imports_no_torch_and_takes_under_a_second(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3)
    ran = subprocess.run(
        [sys.executable, "-c", _PROBE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    # Processor time: other work on the machine does not count against us.
    assert float(ran.stdout.split()[-1]) < 1.0


@pytest.mark.parametrize("name", WRITERS)
def test_a_clean_dataset_of_every_layout(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path / "data", 4) or tmp_path / "data"
    ran = run("prod9", "data", "check", root)
    assert ran.code == 0, ran.err
    assert "0 errors, 0 warnings. Headers only" in ran.out
    for text in ("4 of 4 patients", "16×18×14", "4×4×4"):
        assert text in ran.out


@pytest.mark.parametrize(("patients", "then"), [(2, "generate translate"), (4, "plan")])
def test_the_next_command_is_one_that_these_patients_allow(tmp_path: Path, patients: int, then: str) -> None:
    write_brats_tree(tmp_path, patients)
    ran = run("prod9", "data", "check", tmp_path)
    assert ran.code == 0, ran.err
    assert f": prod9 {then} " in ran.err
    assert ("--target FLAIR -o made" in ran.err) == (patients == 2)


def test_errors_are_printed_with_the_file(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "data", 4)
    bad = next((tmp_path / "data").rglob("*t2w.nii.gz"))
    bad.write_bytes(b"")
    ran = run("prod9", "data", "check", tmp_path / "data")
    assert ran.code == 1
    assert str(bad) in ran.out
    assert "1 error, 0 warnings" in ran.err
    assert "Error:" not in ran.err, "the table is the message"


def test_long_lists_are_cut_on_the_screen_only(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "data", 8)
    for bad in [*(tmp_path / "data").rglob("*t2w.nii.gz"), *(tmp_path / "data").rglob("*t1c.nii.gz"),
                *(tmp_path / "data").rglob("*t1n.nii.gz")]:  # fmt: skip
        bad.write_bytes(b"")
    ran = run("prod9", "data", "check", tmp_path / "data")
    assert "… and 4 more; --json lists all." in ran.out
    assert len(run("prod9", "data", "check", tmp_path / "data", "--json").json["findings"]) == 24


def test_a_page_is_written_outside_the_data_only(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "data", 3)
    ran = run("prod9", "data", "check", tmp_path / "data", "--html", tmp_path / "data" / "page.html")
    assert ran.code == 2
    assert "never written to" in ran.err
    ran = run("prod9", "data", "check", tmp_path / "data", "--html", tmp_path / "out" / "page.html", "-j", 2)
    assert ran.code == 0, ran.err
    assert "Every voxel was read" in ran.out
    assert (tmp_path / "out" / "page.html").stat().st_size > 1000


def test_info_writes_the_fingerprint(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "data", 3)
    ran = run("prod9", "data", "info", tmp_path / "data", "--output", tmp_path / "fp.json")
    assert ran.code == 0, ran.err
    assert "Suggested: data.spacing [4.0, 4.0, 4.0], data.grid [16, 16, 16]" in ran.out
    ran = run("prod9", "data", "info", tmp_path / "data", "--json")
    assert ran.json == json.loads((tmp_path / "fp.json").read_text())


def test_info_refuses_faulty_data(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "data", 3)
    bad = next((tmp_path / "data").rglob("*t2w.nii.gz"))
    bad.write_bytes(bad.read_bytes()[:-50])
    ran = run("prod9", "data", "info", tmp_path / "data", "--output", tmp_path / "fp.json")
    assert ran.code == 1
    assert str(bad) in ran.err
    assert not (tmp_path / "fp.json").exists()


@pytest.mark.parametrize("command", ["check", "info"])
def test_nothing_to_look_at(tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "nowhere"):
        ran = run("prod9", "data", command, root)
        assert ran.code == 1
        assert str(root) in ran.err


@pytest.mark.parametrize(("option", "code"), [(("--layout", "brats1999"), 1), (("--label-scheme", "x"), 2)])
def test_wrong_words(tmp_path: Path, option: tuple[str, str], code: int) -> None:
    write_brats_tree(tmp_path / "data", 3)
    ran = run("prod9", "data", "check", tmp_path / "data", *option)
    assert ran.code == code
    assert option[1] in ran.err
