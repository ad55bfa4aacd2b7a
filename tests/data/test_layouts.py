"""Names of five years of challenges, and folders that must be refused."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.data.layouts.find import MODALITIES, find_cases, parse_modality
from prod9.data.layouts.names import Identity, parse_name
from prod9.errors import DataError

TOKENS = {
    "t1": "T1",
    "t1n": "T1",
    "t1w": "T1",
    "t1c": "T1ce",
    "t1ce": "T1ce",
    "t1gd": "T1ce",
    "t2": "T2",
    "t2w": "T2",
    "t2f": "FLAIR",
    "flair": "FLAIR",
}
SUFFIXES = {"_": ("t1", "t1ce", "t2", "flair"), "-": ("t1n", "t1c", "t2w", "t2f")}
ANY_CASE = st.sampled_from([str.lower, str.upper, str.title, str.swapcase])


def touch_case(
    folder: Path, name: str, *, separator: str = "_", seg: str | None = "seg", end: str = ".nii.gz"
) -> Path:
    """Make the empty files of one case in ``folder / name``: names alone matter here."""
    case = folder / name
    case.mkdir(parents=True)
    stem = Path(name).name
    for suffix in (*SUFFIXES[separator], *([seg] if seg else [])):
        (case / f"{stem}{separator}{suffix}{end}").touch()
    return case


# ---- the parser of names ----


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("BraTS_T1.nii.gz", "T1"),
        ("BraTS_T1ce.nii.gz", "T1ce"),
        ("BraTS_T2.nii", "T2"),
        ("BraTS_FLAIR.nii", "FLAIR"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "T1"),
        ("BraTS-GLI-00000-000-t1c.nii.gz", "T1ce"),
        ("BraTS2021_00000_flair.nii.gz", "FLAIR"),
        ("sub-01_T1w.nii.gz", "T1"),
        ("t1.nii.gz", "T1"),
        ("BraTS2021_00000_seg.nii.gz", "seg"),
        ("W39_1998.09.19_Segm.nii", "seg"),
        ("case_t1_t2.nii.gz", "T2"),
        ("at1.nii.gz", None),
        ("BraTS_T1_brain.nii.gz", None),
        ("report.pdf", None),
        ("", None),
    ],
)
def test_known_names(name: str, modality: str | None) -> None:
    assert parse_modality(name) == modality


@given(
    stem=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), max_size=20),
    separator=st.sampled_from("-_. "),
    token=st.sampled_from(sorted(TOKENS)),
    spell=ANY_CASE,
    end=st.sampled_from([".nii", ".nii.gz", ".NII.GZ"]),
)
def test_the_longest_token_wins(
    stem: str, separator: str, token: str, spell: Callable[[str], str], end: str
) -> None:
    assert parse_modality(f"{stem}{separator}{spell(token)}{end}") == TOKENS[token]


@given(st.text(max_size=40))
def test_any_text_has_one_answer(name: str) -> None:
    assert parse_modality(name) in {*MODALITIES, "seg", None}


CASES = {
    "Brats17_TCIA_201_1": ("Brats17_TCIA_201", "1", "brats2018"),
    "Brats18_CBICA_AAM_1": ("Brats18_CBICA_AAM", "1", "brats2018"),
    "BraTS19_2013_10_1": ("BraTS19_2013_10", "1", "brats2019"),
    "BraTS20_Training_001": ("BraTS20_Training_001", None, "brats2020"),
    "BraTS20_Validation_125": ("BraTS20_Validation_125", None, "brats2020"),
    "BraTS2021_01666": ("BraTS2021_01666", None, "brats2021"),
    "BraTS-GLI-00003-101": ("BraTS-GLI-00003", "101", "brats2023"),
    "BraTS-MEN-RT-0004-1": ("BraTS-MEN-RT-0004", "1", "brats2023"),
    "BraTS-GoAT-00012": ("BraTS-GoAT-00012", None, "brats2023"),
}


@given(
    case=st.sampled_from(sorted(CASES)),
    token=st.sampled_from([*sorted(TOKENS), "seg"]),
    separator=st.sampled_from("-_. "),
    spell=st.sampled_from([str, str.lower, str.upper, str.title, str.swapcase]),
    end=st.sampled_from([".nii", ".nii.gz", ".NII", ".Nii.Gz"]),
    folder=st.text(max_size=12),
)
def test_every_spelling_of_a_name_is_one_case(
    case: str, token: str, separator: str, spell: Callable[[str], str], end: str, folder: str
) -> None:
    parsed = parse_name(spell(f"{case}{separator}{token}") + end, folder=folder)
    assert parsed is not None
    assert parsed.kind == TOKENS.get(token, "seg")
    patient, time_point, year = CASES[case]
    assert parsed.identity == Identity(case, patient, time_point, year)


def test_both_spellings_of_an_accent_are_one_case(tmp_path: Path) -> None:
    for form, tokens in (("NFC", ("t1", "t1ce")), ("NFD", ("t2", "flair"))):
        for token in tokens:
            (tmp_path / f"{unicodedata.normalize(form, 'Müller')}_{token}.nii.gz").touch()
    assert [case.case_id for case in find_cases(tmp_path)] == [unicodedata.normalize("NFC", "Müller")]


# ---- folders ----


@pytest.mark.parametrize(
    ("name", "separator", "patient", "layout"),
    [
        ("HGG/Brats18_TCIA01_001_1", "_", "Brats18_TCIA01_001", "brats2018"),
        ("LGG/BraTS19_TCIA10_103_1", "_", "BraTS19_TCIA10_103", "brats2019"),
        ("BraTS20_Training_001", "_", "BraTS20_Training_001", "brats2020"),
        ("BraTS20_Validation_012", "_", "BraTS20_Validation_012", "brats2020"),
        ("BraTS2021_00000", "_", "BraTS2021_00000", "brats2021"),
        ("BraTS-GLI-00003-001", "-", "BraTS-GLI-00003", "brats2023"),
        ("BraTS-MEN-00004-000", "-", "BraTS-MEN-00004", "brats2023"),
        ("deep/er/patient 7", "_", "patient 7", "canonical"),
    ],
)
@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_layouts(tmp_path: Path, name: str, separator: str, patient: str, layout: str, end: str) -> None:
    folder = touch_case(tmp_path, name, separator=separator, end=end)
    (case,) = find_cases(tmp_path, require_seg=True)
    assert (case.case_id, case.patient_id) == (folder.name, patient)
    assert (case.layout, case.label_scheme) == (layout, layout)
    assert list(case.images) == list(MODALITIES)
    for modality, suffix in zip(MODALITIES, SUFFIXES[separator], strict=True):
        assert case.images[modality].name == f"{folder.name}{separator}{suffix}{end}"
    assert case.seg is not None
    assert case.seg.name == f"{folder.name}{separator}seg{end}"


def test_the_mask_of_case_355_kept_its_hospital_name(tmp_path: Path) -> None:
    folder = touch_case(tmp_path, "BraTS20_Training_355", seg=None, end=".nii")
    touch_case(tmp_path, "BraTS20_Training_354", end=".nii")
    (folder / "W39_1998.09.19_Segm.nii").touch()
    cases = find_cases(tmp_path, require_seg=True)
    assert [case.seg.name for case in cases if case.seg] == [
        "BraTS20_Training_354_seg.nii",
        "W39_1998.09.19_Segm.nii",
    ]


def test_time_points_belong_to_one_patient(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00002-001", "BraTS-GLI-00002-000", "BraTS-GLI-00010-000"):
        touch_case(tmp_path, name, separator="-")
    cases = find_cases(tmp_path)
    assert [case.case_id[-9:] for case in cases] == ["00002-000", "00002-001", "00010-000"]
    assert len({case.patient_id for case in cases}) == 2


def test_files_of_many_cases_in_one_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for suffix in SUFFIXES["_"]:
            (tmp_path / f"{name}_{suffix}.nii.gz").touch()
    assert [case.case_id for case in find_cases(tmp_path)] == ["a", "b"]


def test_bare_names_take_the_name_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / "patient").mkdir()
    for suffix in SUFFIXES["_"]:
        (tmp_path / "patient" / f"{suffix}.nii.gz").touch()
    assert find_cases(tmp_path)[0].case_id == "patient"


def test_what_is_no_case_is_passed_over(tmp_path: Path) -> None:
    touch_case(tmp_path, "BraTS2021_00000")
    (tmp_path / "name_mapping.csv").touch()
    (tmp_path / "atlas.nii.gz").touch()
    (tmp_path / ".hidden_t1.nii.gz").touch()
    (tmp_path / "LGG_seg.nii.gz").touch()
    assert [case.case_id for case in find_cases(tmp_path)] == ["BraTS2021_00000"]


def test_only_the_modalities_asked_for(tmp_path: Path) -> None:
    folder = touch_case(tmp_path, "BraTS2021_00000", seg=None)
    (folder / "BraTS2021_00000_t1ce.nii.gz").unlink()
    (case,) = find_cases(tmp_path, modalities=["T2", "T1"])
    assert set(case.images) == {"T1", "T2"}
    assert case.seg is None


def test_a_named_layout_decides_the_labels(tmp_path: Path) -> None:
    touch_case(tmp_path, "BraTS-GLI-00003-100", separator="-")
    (case,) = find_cases(tmp_path, layout="brats2024")
    assert case.label_scheme == "brats2024"
    assert case.patient_id == "BraTS-GLI-00003"


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    store, root = tmp_path / "store", tmp_path / "root"
    touch_case(store, "BraTS2021_00000")
    root.mkdir()
    (root / "linked").symlink_to(store, target_is_directory=True)
    (store / "BraTS2021_00000" / "up").symlink_to(store, target_is_directory=True)
    (root / "self").symlink_to(root, target_is_directory=True)
    (root / "gone").symlink_to(tmp_path / "absent")
    assert [case.case_id for case in find_cases(root)] == ["BraTS2021_00000"]


# ---- folders that must be refused ----


def test_missing_modalities_are_all_named(tmp_path: Path) -> None:
    (touch_case(tmp_path, "BraTS2021_00000") / "BraTS2021_00000_t1ce.nii.gz").unlink()
    (touch_case(tmp_path, "BraTS2021_00001", seg=None) / "BraTS2021_00001_flair.nii.gz").unlink()
    touch_case(tmp_path, "BraTS2021_00002")
    with pytest.raises(
        DataError, match="BraTS2021_00000 lacks T1ce; BraTS2021_00001 lacks FLAIR, seg"
    ) as caught:
        find_cases(tmp_path, require_seg=True)
    assert "BraTS2021_00002" not in str(caught.value)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for k in range(13):
        (touch_case(tmp_path, f"BraTS2021_{k:05d}") / f"BraTS2021_{k:05d}_t2.nii.gz").unlink()
    with pytest.raises(DataError, match="and 3 more"):
        find_cases(tmp_path)


def test_folders_without_cases(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: expected a folder with cases, got nothing"):
        find_cases(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: expected a folder with cases, got a file"):
        find_cases(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="prod9 data simulate"):
        find_cases(tmp_path / "empty")


def test_two_files_for_one_modality(tmp_path: Path) -> None:
    folder = touch_case(tmp_path, "BraTS2021_00000")
    (folder / "BraTS2021_00000_t1.nii").touch()
    with pytest.raises(DataError, match="one T1 file for case BraTS2021_00000"):
        find_cases(tmp_path)


def test_unknown_modality_and_layout(tmp_path: Path) -> None:
    touch_case(tmp_path, "BraTS2021_00000")
    with pytest.raises(DataError, match="got T3"):
        find_cases(tmp_path, modalities=["T1", "T3"])
    with pytest.raises(DataError, match="got brats1999"):
        find_cases(tmp_path, layout="brats1999")
