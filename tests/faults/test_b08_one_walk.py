"""Every command walks folders in the same way: hidden files never, links and letters of any case always."""

import os
import shutil
from pathlib import Path

import pytest

from prod9.cli.generate.infer import find_volumes as inputs_of_infer
from prod9.cli.generate.inputs import find_segmentations
from prod9.data.checking.fingerprint import read_fingerprint
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.data.layouts.scan import Walk, find_volumes, walk
from prod9.errors import DataError
from prod9.evaluation.sets.volume_sets import find_volumes as volumes_of_evaluation
from tests.fixtures import write_brats_tree
from tests.harness import run

NEEDS_LINKS = pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
NEEDS_RIGHTS = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read anything"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Volumes of odd names, links, and what is no volume."""
    root, store = tmp_path / "in", tmp_path / "store"
    (root / ".git/annex").mkdir(parents=True)
    (root / "__MACOSX").mkdir()
    store.mkdir()
    (store / "z_t1.nii.gz").touch()
    for name in (
        "A_T1.NII.GZ", "b_t1.nii", "C_t1.Nii", "._b_t1.nii", ".tmp-012345-b_t1.nii.gz", ".hidden_t1.nii.gz",
        "notes.txt", ".git/annex/MD5E-s1--0.nii.gz", "__MACOSX/d_t1.nii.gz", "e_t1.nii.gz.part", "f_seg.nii.gz",
    ):  # fmt: skip
        (root / name).touch()
    (root / "linked").symlink_to(store, target_is_directory=True)
    (root / "up").symlink_to(root, target_is_directory=True)
    return root


IMAGES = ["A_T1.NII.GZ", "C_t1.Nii", "b_t1.nii", "linked/z_t1.nii.gz"]


@NEEDS_LINKS
def test_b8_one_answer_of_all_commands(folder: Path) -> None:
    assert [str(p.relative_to(folder)) for p in find_volumes(folder, images_only=True)] == sorted(
        IMAGES, key=lambda name: (name.startswith("linked"), name)
    )
    assert [p.name for p in find_volumes(folder) if p not in find_volumes(folder, images_only=True)] == [
        "f_seg.nii.gz"
    ]
    names = inputs_of_infer([folder], folder.parent / "out")
    assert sorted(names) == ["A_T1.nii.gz", "C_t1.nii.gz", "b_t1.nii.gz", "linked/z_t1.nii.gz"]
    assert sorted(e.path.name for e in volumes_of_evaluation(folder)) == sorted(Path(n).name for n in IMAGES)
    assert {case.case_id for case in scan_dataset(folder).cases} == {"A", "b", "C", "z"}
    assert find_segmentations([folder]) == {"f": folder / "f_seg.nii.gz"}


def test_b8_segmentations_of_odd_names(tmp_path: Path) -> None:
    for name in ("A_SEG.NII.GZ", "._b_seg.nii.gz", ".tmp-1-c_seg.nii", "d_seg.nii"):
        (tmp_path / name).touch()
    assert sorted(find_segmentations([tmp_path])) == ["A", "d"]


def test_b8_a_single_file_of_capital_letters(tmp_path: Path) -> None:
    (tmp_path / "X.NII.GZ").touch()
    assert list(inputs_of_infer([tmp_path / "X.NII.GZ"], tmp_path / "out")) == ["X.nii.gz"]


# ---- what cannot be reached ----


@NEEDS_LINKS
def test_b8_links_to_nothing_are_said_to_be_so(tmp_path: Path) -> None:
    """As in a DataLad dataset whose content was not fetched."""
    folders = write_brats_tree(tmp_path / "data", 3, (4, 4, 4))
    gone = next(folders[0].glob("*t1c.nii.gz"))
    gone.unlink()
    gone.symlink_to("../.git/annex/objects/MD5E-s9--1.nii.gz")
    for command in (
        lambda: find_cases(tmp_path / "data"),
        lambda: inputs_of_infer([tmp_path / "data"], tmp_path / "out"),
        lambda: find_segmentations([tmp_path / "data"]),
        lambda: list(walk(tmp_path / "data")),
    ):
        with pytest.raises(DataError) as caught:
            command()
        for text in (str(gone), "link", ".git/annex/objects", "datalad get"):
            assert text in str(caught.value)
    ran = run("prod9", "data", "check", tmp_path / "data", "--json")
    assert ran.code == 1
    assert any(str(gone) in f["message"] and "datalad get" in f["message"] for f in ran.json["findings"])


@NEEDS_LINKS
def test_b8_a_folder_of_links_to_nothing_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "P1").mkdir()
    for token in ("t1", "t1ce", "t2", "flair"):
        (tmp_path / "P1" / f"P1_{token}.nii.gz").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="datalad get") as caught:
        find_cases(tmp_path)
    assert "got none" not in str(caught.value)


@NEEDS_LINKS
@pytest.mark.parametrize("name", ["dataset.json", "list.csv", "in"])
def test_b8_a_description_or_root_that_leads_to_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a_0000.nii.gz").touch()
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="datalad get"):
        find_cases(tmp_path if name == "dataset.json" else tmp_path / name)


@NEEDS_LINKS
def test_b8_listed_links_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a_t1.nii.gz").symlink_to(tmp_path / "gone")
    (tmp_path / "list.csv").write_text("case,T1\na,a_t1.nii.gz\n")
    with pytest.raises(DataError, match=r"datalad get.*listed in .*list.csv"):
        find_cases(tmp_path / "list.csv", modalities=["T1"])


@NEEDS_LINKS
def test_b8_links_to_themselves(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "data", 3, (4, 4, 4))
    (tmp_path / "data/loop").symlink_to("loop")
    (tmp_path / "data/round").symlink_to(tmp_path / "data", target_is_directory=True)
    assert len(find_cases(tmp_path / "data")) == 3
    report = run("prod9", "data", "check", tmp_path / "data", "--json")
    assert report.code == 0
    assert any("loop" in f["message"] for f in report.json["findings"] if f["level"] == "warning")
    (tmp_path / "data/x_t1.nii.gz").symlink_to("x_t1.nii.gz")
    with pytest.raises(DataError, match=r"x_t1.nii.gz: cannot be read .*leads to itself"):
        find_cases(tmp_path / "data")


@NEEDS_LINKS
def test_b8_a_link_to_a_folder_that_is_gone_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_brats_tree(tmp_path / "data", 3, (4, 4, 4))
    (tmp_path / "data/BraTS-GLI-00009-000").symlink_to(tmp_path / "gone")
    assert len(find_cases(tmp_path / "data")) == 3
    assert "BraTS-GLI-00009-000" in caplog.text
    (tmp_path / "data/README.md").symlink_to(tmp_path / "gone")
    found = Walk()
    list(found.files(tmp_path / "data"))
    assert len(found.doubts) == 1, "a text is no data"


@NEEDS_RIGHTS
def test_b8_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    folders = write_brats_tree(tmp_path / "data", 3, (4, 4, 4))
    folders[0].chmod(0)
    try:
        with pytest.raises(DataError, match=rf"{folders[0]}: expected a folder that can be read"):
            find_cases(tmp_path / "data")
    finally:
        folders[0].chmod(0o755)


def test_b8_a_folder_that_vanishes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x_t1.nii.gz").touch()
    (tmp_path / "b").mkdir()
    found, files = Walk(), []
    for path in found.files(tmp_path):
        files.append(path.name)
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
    assert files == ["x_t1.nii.gz"]
    assert "b: expected a folder that can be read" in found.problems[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_b8_pipes_are_no_volumes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "P1_t1.nii.gz")
    with pytest.raises(DataError, match="a device or a pipe"):
        find_cases(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".csv", "a/" * 3000])
def test_b8_a_root_of_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="the name is too long"):
        find_cases(tmp_path / name)
    ran = run("prod9", "data", "check", tmp_path / name)
    assert ran.code == 1
    assert ran.err.count("Error:") == 1


def test_b8_other_files_that_nest_too_deep(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text("[" * 100000)
    with pytest.raises(DataError, match="expected a fingerprint"):
        read_fingerprint(tmp_path / "fingerprint.json")
