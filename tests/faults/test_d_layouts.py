"""Smaller faults of folders and lists: what is said, and what is let pass."""

import codecs
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.cli.generate.infer import find_volumes as inputs_of_infer
from prod9.data.checking.report import check_dataset
from prod9.data.layouts.find import MODALITIES, find_cases, scan_dataset
from prod9.data.layouts.names import parse_modality
from prod9.errors import DataError
from prod9.system.wording import are, listing, plural
from tests.data.trees import write_datalist, write_nnunet
from tests.fixtures import write_brats_tree
from tests.harness import run, write_configs

TOKENS = ("t1", "t1ce", "t2", "flair")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


# ---- words ----


def test_d_counts_and_lists() -> None:
    assert [plural(n, "patient") for n in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
    assert plural(["a"], "entry", "entries") == "1 entry"
    assert plural([], "entry", "entries") == "0 entries"
    assert (are(1), are(2), are("a")) == ("is", "are", "is")
    assert listing("abcd") == "a, b, c and 1 more"
    assert (listing("abc"), listing([]), listing("ab", 1, joint="; ")) == ("a, b, c", "none", "a and 1 more")


def test_d_messages_agree_with_their_numbers(tmp_path: Path) -> None:
    folders = write_brats_tree(tmp_path, 2, (4, 4, 4))
    for token in ("t1n", "t2w"):
        next(folders[0].glob(f"*{token}*")).unlink()
    next(folders[1].glob("*t2f*")).unlink()
    messages = "\n".join(f.message for f in check_dataset(tmp_path).findings)
    assert "T1, T2 are missing" in messages
    assert "FLAIR is missing" in messages
    assert "2 patients cannot" in messages


@pytest.mark.parametrize(
    ("name", "modality"),
    [("x_fla", "FLAIR"), ("x_T2_FLAIR", "FLAIR"), ("x_t2flair", "FLAIR"), ("x_t1gad", "T1ce"), ("x_t1_gd", "T1ce"),
     ("x_CT1", "T1ce"), ("x_T1_CE", "T1ce"), ("x_t1c", "T1ce")],
)  # fmt: skip
def test_d_other_words_for_modalities(name: str, modality: str) -> None:
    assert parse_modality(f"{name}.nii.gz") == modality


# ---- folders ----


def test_d_volumes_without_a_modality_are_counted_and_shown(tmp_path: Path) -> None:
    for k in range(5):
        touch(tmp_path / f"P{k}" / "brain.nii.gz")
    with pytest.raises(DataError) as caught:
        find_cases(tmp_path)
    for text in ("5 volumes", "P0/brain.nii.gz, P1/brain.nii.gz and 3 more", "CSV", "case,patient,T1"):
        assert text in str(caught.value)
    assert "got none" not in str(caught.value)


def test_d_volumes_of_no_case_are_told_by_their_paths(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 2, (4, 4, 4))
    for folder in sorted(tmp_path.iterdir()):
        touch(folder / "GT_W.nii.gz")
    (note,) = [f.message for f in check_dataset(tmp_path).findings if f.code == "ignored"]
    assert note.startswith(
        "2 volumes belong to no case: BraTS-GLI-00000-000/GT_W.nii.gz, BraTS-GLI-00001-000/GT_W"
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.nrrd", "SimpleITK"), ("a.mha", "SimpleITK"), ("a.MHA", "SimpleITK"), ("a.mgz", "nibabel"),
     ("a.img", "nibabel"), ("a.dcm", "dcm2niix")],
)  # fmt: skip
def test_d_other_formats(tmp_path: Path, name: str, remedy: str) -> None:
    touch(tmp_path / "only" / name)
    for command in (
        lambda: find_cases(tmp_path / "only"),
        lambda: inputs_of_infer([tmp_path / "only"], tmp_path / "out"),
    ):
        with pytest.raises(DataError) as caught:
            command()
        assert name in str(caught.value)
        assert remedy in str(caught.value)
    write_brats_tree(tmp_path / "both", 3, (4, 4, 4))
    touch(tmp_path / "both" / name)
    findings = [f for f in check_dataset(tmp_path / "both").findings if f.code == "format"]
    assert [f.level for f in findings] == ["warning"]
    assert f"1 image of other formats is left out: {name}" in findings[0].message


@pytest.mark.parametrize(("depth", "text"), [(1, "are a single slice"), (2, "are only 2 slices")])
def test_d_a_single_slice_is_a_warning(tmp_path: Path, depth: int, text: str) -> None:
    folders = write_brats_tree(tmp_path, 3, (8, 8, 8))
    for path in folders[0].iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., :depth], image.affine), path)
    found = [f for f in check_dataset(tmp_path).findings if f.code == "slice"]
    assert {f.level for f in found} == {"warning"}
    assert len(found) == 1, "one for a case"
    assert all(text in f.message for f in found)


@pytest.mark.parametrize("place", ["imagesTr/BraTS2021_00000_0000", "labelsTr/BraTS2021_00000"])
def test_d_a_channel_with_and_without_gz(tmp_path: Path, place: str) -> None:
    write_nnunet(tmp_path, 2)
    twin = touch(tmp_path / f"{place}.nii")
    with pytest.raises(DataError, match=r"expected one file for .*remove one") as caught:
        find_cases(tmp_path)
    assert twin.name in str(caught.value)
    assert f"{twin.name}.gz" in str(caught.value)


def test_d_an_image_of_bids_with_and_without_gz(tmp_path: Path) -> None:
    for end in (".nii", ".nii.gz"):
        touch(tmp_path / f"sub-1/anat/sub-1_T1w{end}")
    with pytest.raises(DataError, match="expected one file of this image"):
        find_cases(tmp_path, modalities=["T1"])


def test_d_a_label_of_the_decathlon_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr/a.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    content = {"modality": {"0": "T1"}, "labels": {"0": "background", "1": "tumor"}, "training": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labelsTr/a.nii.gz: listed in .*dataset.json, but no such file"):
        find_cases(tmp_path, modalities=["T1"])


# ---- incomplete cases ----


def test_d_incomplete_cases_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = write_brats_tree(tmp_path, 4, (4, 4, 4))
    next(folders[1].glob("*t2w*")).unlink()
    with pytest.raises(DataError, match=r"data.skip_incomplete: true"):
        find_cases(tmp_path)
    assert len(find_cases(tmp_path, skip_incomplete=True)) == 3
    assert "1 incomplete case is left out (data.skip_incomplete): BraTS-GLI-00001-000 lacks T2" in caplog.text
    for folder in folders:
        for path in folder.glob("*t2w*"):
            path.unlink()
    with pytest.raises(DataError, match="lacks T2"):
        find_cases(tmp_path, skip_incomplete=True)


def test_d_rows_whose_file_is_gone_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_datalist(tmp_path, 4)
    (tmp_path / "files/Müller 2/scan 1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no such file.*data.skip_incomplete"):
        find_cases(path)
    assert [case.case_id for case in find_cases(path, skip_incomplete=True)] == ["scan0", "scan1", "scan3"]
    assert "scan 1.nii.gz" in caplog.text


def test_d_doubled_files_are_never_left_out(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3, (4, 4, 4))
    twin = next(tmp_path.rglob("*t1n.nii.gz"))
    touch(twin.with_name(twin.name[:-3]))
    with pytest.raises(DataError, match="expected one T1 file"):
        find_cases(tmp_path, skip_incomplete=True)


def test_d_the_config_says_so(tmp_path: Path) -> None:
    config, _ = write_configs(tmp_path)
    next((tmp_path / "cohort").rglob("*t2w.nii.gz")).unlink()
    command = ("prod9-train-autoencoder", "train", "--config", config, "--check")
    ran = run(*command)
    assert ran.code == 1
    assert "data.skip_incomplete" in ran.err
    assert run(*command, "--set", "data.skip_incomplete=true").code == 0


# ---- lists ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_d_lists_of_any_separator_and_encoding(
    tmp_path: Path, encoding: str, delimiter: str, suffix: str
) -> None:
    path = write_datalist(tmp_path, 2)
    expected = scan_dataset(path).cases
    text = path.read_text(encoding="utf-8").replace(",", delimiter).replace("\n", "\r\n")
    changed = path.with_name(f"other{suffix}")
    changed.write_text(text, encoding=encoding, newline="")
    assert scan_dataset(changed).cases == expected


@pytest.mark.parametrize("start", ["sep=;\n", '"sep=;"\r\n', "\n\n"])
def test_d_what_excel_puts_in_front(tmp_path: Path, start: str) -> None:
    path = write_datalist(tmp_path, 2)
    expected = scan_dataset(path).cases
    text = path.read_text(encoding="utf-8").replace(",", ";")
    path.write_bytes(codecs.BOM_UTF8 + (start + text + ";;;\n").encode())
    assert scan_dataset(path).cases == expected


def test_d_paths_of_windows(tmp_path: Path) -> None:
    path = write_datalist(tmp_path, 2)
    expected = scan_dataset(path).cases
    path.write_text(path.read_text(encoding="utf-8").replace("/", "\\"), encoding="utf-8")
    assert scan_dataset(path).cases == expected
    (tmp_path / "drive.csv").write_text("case,T1\na,D:\\data\\a_t1.nii.gz\n")
    with pytest.raises(DataError, match=r"D:/data/a_t1.nii.gz: listed in .*a path of Windows"):
        find_cases(tmp_path / "drive.csv", modalities=["T1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,T1\na,a,b_t1.nii.gz\n", "expected a header|line 2: expected 2 cells"),
        ("case,T1\nx,a_t1.nii.gz,b\n", "line 2: expected 2 cells as in the header, got 3"),
        ("case,T1,t1n\nx,a_t1.nii.gz,a_t1.nii.gz\n", "expected one column for T1"),
        ("case,case,T1\nx,y,a_t1.nii.gz\n", "expected one column case"),
        ("case,T1\nx,a_t1.mha\n", "SimpleITK"),
        ("case,T1\n../../x,a_t1.nii.gz\n", r"the name of a case to have no / or"),
        ("case,T1\nC:\\x,a_t1.nii.gz\n", r"the name of a case to have no / or"),
        ("case,T1\n..,a_t1.nii.gz\n", "the name of a case to have letters"),
        ("case,T1\nx\x1b[31m,a_t1.nii.gz\n", "no control characters"),
        ("case,T1\n" + "x" * 201 + ",a_t1.nii.gz\n", "at most 200 bytes"),
        ("case,T1\nCON,a_t1.nii.gz\n", "reserved"),
        ("case,T1\n.hidden,a_t1.nii.gz\n", "no dot in front"),
        ("case,../T1x\nx,a_t1.nii.gz\n", "the name of a modality to have no / or"),
        ("case,T1\nx," + "y" * 300 + "_t1.nii.gz\n", "the name is too long"),
        ("case,T1\nx,\x00_t1.nii.gz\n", "listed in|expected a text table"),
        ("case,T1\n" + "x" * 140000 + ",a_t1.nii.gz\n", "expected a text table"),
    ],
)
def test_d_lists_with_mistakes(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "a_t1.nii.gz")
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        find_cases(tmp_path / "list.csv", modalities=["T1"])
    assert "list.csv" in str(caught.value)
    assert str(caught.value).isprintable() or "\x00" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"training": 1.5},
        {"training": "a_t1.nii.gz"},
        {"training": [{"image": 5}]},
        {"training": [{"image": [5]}]},
        {"training": [{"image": {"T1": "a_t1.nii.gz"}}]},
        {"training": [{"image": "a_t1.nii.gz", "label": {"a": 1}}]},
        {"training": [{"image": "a_t1.nii.gz", "case": [1, 2]}]},
        {"training": [{"image": "a_t1.nii.gz", "case": "../x"}]},
        {"training": [{"image": "a_t1.nii.gz", "case": "x\ud800"}]},
        {"channel_names": {"0": "../../evil"}, "training": [{"image": "a_t1.nii.gz"}]},
        {"training": [{"image": "\ud800_t1.nii.gz"}]},
        {"training": [{"image": "x" * 300 + "_t1.nii.gz"}]},
    ],
)
def test_d_json_lists_with_mistakes(tmp_path: Path, content: object) -> None:
    touch(tmp_path / "a_t1.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"list\.json"):
        find_cases(tmp_path / "list.json", modalities=["T1"])


def test_d_modalities_of_a_description_are_names(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr/a_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "../../evil"}, "labels": {}}))
    with pytest.raises(DataError, match="the name of a modality to have no / or"):
        find_cases(tmp_path, modalities=list(MODALITIES))
