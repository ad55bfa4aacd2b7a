"""Visits of one patient stay on one side of a split, whatever their names, and guesses are listed by the check."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.data.cases import Case
from prod9.data.checking.report import check_dataset
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.data.layouts.names import identify, parse_name
from prod9.data.layouts.visits import is_visit, look_alikes
from prod9.data.splits import split_patients
from tests.data.trees import write_datalist
from tests.fixtures import write_brats_tree

TOKENS = ("t1", "t1ce", "t2", "flair")

VISITS = (
    "tp1", "tp-2", "TP03", "time1", "time_2", "time01", "timepoint1", "timepoint-2", "time-point_1", "Timepoint_3",
    "ses-01", "ses-2", "ses01", "ses-preop", "ses-20190102", "session1", "session_2", "sess1", "visit1", "visit-02",
    "Visit_A", "vis2", "month1", "month_06", "months12", "mo3", "m06", "m12", "M3", "6m", "12months", "3mo", "week1",
    "week-000-1", "week-044", "wk2", "w12", "24w", "day0", "day_30", "d30", "d0129", "year1", "y2", "2years", "v1",
    "v02", "t0", "t3", "baseline", "Baseline", "bl", "followup", "follow-up", "follow_up_2", "followup1", "FU", "fu2",
    "FU001d", "fup1", "pre", "post", "preop", "pre-op", "postop", "post_op", "pretreatment", "post-treatment", "preRT",
    "postRT", "intraop", "screening", "recurrence", "progression", "nadir", "initial", "scan1", "scan_2", "exam1",
    "study2", "MR1", "retest", "run-1", "2019-01", "final", "1st_visit", "2nd-scan", "prior",
    "20190102", "2019-01-02", "2019_01_02", "2019.01.02",
    "02-01-2019", "02.01.2019", "20190102T1200", "20190102_120000", "2Jan2019", "2019-Jan-02",
)  # fmt: skip
PATIENTS = (
    "P001",
    "P0",
    "100001",
    "sub-01",
    "Patient-001",
    "PatientID_0003",
    "glioma_012",
    "7",
    "A1-B2",
    "müller3",
)


@pytest.mark.parametrize("visit", VISITS)
def test_a6_a_visit_is_no_patient(visit: str) -> None:
    for patient in PATIENTS:
        identity = identify(f"{patient}_{visit}")
        assert identity.patient_id == patient, identity
        assert identity.case_id == f"{patient}_{visit}"
        assert identity.time_point


@given(
    patient=st.sampled_from(PATIENTS),
    visits=st.lists(st.sampled_from(VISITS), min_size=2, max_size=3, unique=True),
    joint=st.sampled_from("_-. "),
    spell=st.sampled_from([str, str.lower, str.upper]),
    rest=st.sampled_from(["", "_brain", "_reg_brain", "_run-2", "_acq-3D_run-01"]),
    token=st.sampled_from(TOKENS),
)
def test_a6_visits_of_any_spelling_share_their_patient(
    patient: str, visits: list[str], joint: str, spell: object, rest: str, token: str
) -> None:
    assert callable(spell)
    names = [f"{patient}{joint}{spell(visit)}{rest}_{token}.nii.gz" for visit in visits]
    found = [parse_name(name, folder="data") for name in names]
    assert {parsed.identity.patient_id for parsed in found if parsed is not None} == {patient}
    assert len({parsed.identity.case_id for parsed in found if parsed is not None}) == len(set(names))


@given(
    patients=st.lists(st.from_regex(r"\A[A-Z]{1,3}[0-9]{2,4}\Z"), min_size=2, max_size=6, unique=True),
    visit=st.sampled_from([v for v in VISITS if v not in ("mr1", "MR1")]),
    before=st.booleans(),
)
def test_a6_different_patients_stay_different(patients: list[str], visit: str, before: bool) -> None:
    """A visit in front or behind never takes the patient along."""
    named = [patient for patient in patients if not is_visit(patient)]
    if before and visit[-1].isdigit() and visit[:1].lower() in "mwyvtd":
        return  # m06 in front of a name is as likely a part of it
    names = [f"{visit}_{patient}" if before else f"{patient}_{visit}" for patient in named]
    assert len({identify(name).patient_id for name in names}) == len(named)


@given(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=30)
)
def test_a6_any_name_has_a_patient(name: str) -> None:
    identity = identify(name)
    assert identity.patient_id
    assert identity.case_id


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("baseline_P7", "P7"),
        ("20190102_P7", "P7"),
        ("pre_001", "001"),
        ("ses-01_sub-01", "sub-01"),
        ("siteA_tp1_P7", "siteA_P7"),
        ("Site1_tp1_P7", "Site1_P7"),
        ("BraTS2024_ses-01_sub-003", "BraTS2024_sub-003"),
        ("Study3_baseline_patient_12", "Study3_patient_12"),
        ("P7_tp1_case2", "P7"),
        ("P7_tp1_v2_brain", "P7"),
        ("Smith_tp1", "Smith"),
        ("Smith_2019-01-02", "Smith"),
        ("Smith_tp2_run-2", "Smith"),
        ("P001tp1", "P001"),
        ("sub01ses02", "sub01"),
        ("UCSF-PDGM-0409_FU001d", "UCSF-PDGM-0409"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001"),
        ("RHUH-0001_2", "RHUH-0001"),
        ("OAS1_0001_MR1", "OAS1_0001"),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006"),
        ("brats_tcia_pat101_283", "brats_tcia_pat101"),
        ("BraTS-GLI-00001-001_brain", "BraTS-GLI-00001"),
        ("BraTS-MET-00110-000-t1n-bet", "BraTS-MET-00110"),
        ("BraTS2021_00000_reg", "BraTS2021_00000"),
        ("Brats18_2013_10_1_brain", "Brats18_2013_10"),
    ],
)
def test_a6_other_forms(name: str, patient: str) -> None:
    assert identify(name).patient_id == patient


@pytest.mark.parametrize(
    "name",
    [
        "patient_001", "BRATS_001", "hippocampus_001", "case 7", "TCGA-02-0003", "IXI002-Guys-0828", "HC_M001",
        "Müller", "P001_1", "P001a", "Trial_scan1", "timeline_3", "Timon_1", "weekend_3", "Postma_1", "Prescott_12",
        "C3L-00016", "site_01_patient_02", "visitor_3", "2019-01-02", "scan_001", "sub-01", "P001", "M12",
    ],
)  # fmt: skip
def test_a6_names_without_a_certain_visit_are_patients(name: str) -> None:
    assert identify(name).patient_id == name


# ---- folders ----


def touch(root: Path, *names: str) -> Path:
    """Make an empty file of each modality for every path that ends before the modality."""
    for name in names:
        for token in TOKENS:
            path = root / f"{name}{token}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def cases_of(root: Path) -> dict[str, str]:
    return {case.case_id: case.patient_id for case in find_cases(root)}


@pytest.mark.parametrize(
    "paths",
    [
        ("P001_tp1_", "P001_tp2_"),
        ("P001/P001_tp1_", "P001/P001_tp2_"),
        ("P001_tp1/P001_tp1_", "P001_tp2/P001_tp2_"),
        ("P001/2019-01-02/", "P001/2019-05-06/"),
        ("P001/20190102/", "P001/20190506/"),
        ("P001/week-000-1/", "P001/week-044/"),
        ("P001/ses-01/anat/", "P001/ses-02/anat/"),
        ("P001/baseline/P001_", "P001/followup/P001_"),
        ("baseline/P001_", "followup/P001_"),
        ("baseline/P001/", "followup/P001/"),
        ("P001/tp1_", "P001/tp2_"),
        ("P001/scan1/", "P001/scan2/"),
        ("train/P001/m00/nifti/", "train/P001/m12/nifti/"),
        ("P001/Timepoint_1/P001_Timepoint_1_brain_", "P001/Timepoint_2/P001_Timepoint_2_brain_"),
    ],
)
def test_a6_visits_in_folders(tmp_path: Path, paths: tuple[str, str]) -> None:
    others = [path.replace("P001", "P002") for path in paths]
    found = cases_of(touch(tmp_path, *paths, *others))
    assert len(found) == 4, found
    assert Counter(found.values()) == {"P001": 2, "P002": 2}


def test_a6_folders_that_are_patients_stay_patients(tmp_path: Path) -> None:
    found = cases_of(touch(tmp_path, "P001/", "P002/", "group/P003/", "anat/P004_", "HC/M001/", "HC/F002/"))
    assert len(set(found.values())) == 6


def test_a6_numbers_below_patients_are_cases_of_their_own(tmp_path: Path) -> None:
    """They were one case of doubled files; as patients they are listed, since they may be visits."""
    root = touch(tmp_path, "P001/1/", "P001/2/", "P002/1/")
    assert set(cases_of(root)) == {"P001_1", "P001_2", "P002_1"}
    findings = check_dataset(root).findings
    assert any(f.code == "look-alikes" and "P001_1, P001_2" in f.message for f in findings)


def test_a6_sessions_outside_anat_and_in_folders_only(tmp_path: Path) -> None:
    outside = touch(tmp_path / "a", "sub-01_ses-01_", "sub-01_ses-02_", "sub-02_ses-01_")
    assert Counter(cases_of(outside).values()) == {"sub-01": 2, "sub-02": 1}
    for session in ("01", "02"):
        anat = tmp_path / f"b/sub-1/ses-{session}/anat"
        anat.mkdir(parents=True)
        (anat / "sub-1_T1w.nii.gz").touch()
    found = {c.case_id: c.patient_id for c in find_cases(tmp_path / "b", modalities=["T1"])}
    assert found == {"sub-1_ses-01": "sub-1", "sub-1_ses-02": "sub-1"}


@pytest.mark.parametrize("msd", [False, True])
def test_a6_the_decathlon_and_nnunet(tmp_path: Path, msd: bool) -> None:
    for name in ("P0_tp1", "P0_tp2", "P1_tp1"):
        path = tmp_path / f"imagesTr/{name}{'' if msd else '_0000'}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": {}}))
    found = {c.case_id: c.patient_id for c in find_cases(tmp_path, modalities=["T1"])}
    assert found == {"P0_tp1": "P0", "P0_tp2": "P0", "P1_tp1": "P1"}


def test_a6_lists(tmp_path: Path) -> None:
    for name in ("P1/2019-01-02", "P1/2019-05-06", "P2/2019-01-02"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "t1.nii.gz").touch()
    rows = ["T1", "P1/2019-01-02/t1.nii.gz", "P1/2019-05-06/t1.nii.gz", "P2/2019-01-02/t1.nii.gz"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    found = {c.case_id: c.patient_id for c in find_cases(tmp_path / "a.csv", modalities=["T1"])}
    assert found == {"P1_2019-01-02": "P1", "P1_2019-05-06": "P1", "P2_2019-01-02": "P2"}
    named = [rows[0], *rows[1:3]]
    lines = [f"{head},{row}" for head, row in zip(["case", "X_visit1", "X_visit2"], named, strict=True)]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    assert {c.patient_id for c in find_cases(tmp_path / "b.csv", modalities=["T1"])} == {"X"}


def test_a6_the_patient_column_is_the_last_word(tmp_path: Path) -> None:
    path = write_datalist(tmp_path, 4)
    path.write_text(path.read_text(encoding="utf-8").replace("scan", "P9_tp"), encoding="utf-8")
    assert {c.patient_id for c in scan_dataset(path).cases} <= {"P0", "P1", "P2", "P3"}


# ---- the check, and the split ----


def named_cohort(root: Path, names: Sequence[str]) -> Path:
    """Write a case with voxels under each name."""
    folders = write_brats_tree(root / "made", len(names), (4, 4, 4))
    for folder, name in zip(folders, names, strict=True):
        for path in folder.iterdir():
            token = path.name.rpartition("-")[2]
            (root / "data" / name).mkdir(parents=True, exist_ok=True)
            path.rename(root / "data" / name / f"{name}_{token}")
    shutil.rmtree(root / "made")
    return root / "data"


def test_a6_the_check_lists_what_it_merged_and_what_it_did_not(tmp_path: Path) -> None:
    names = [
        "P001_tp1",
        "P001_tp2",
        "P002_tp1",
        "Q1_1",
        "Q1_2",
        "Smith",
        "smith",
        "Trial_scan1",
        "Trial_scan2",
    ]
    report = check_dataset(named_cohort(tmp_path, names))
    assert report.to_dict()["patients"] == 8
    by_code = {finding.code: finding for finding in report.findings}
    assert by_code["visits"].level == "note"
    assert "3 cases count as visits of 2 patients" in by_code["visits"].message
    assert "P001 (P001_tp1, P001_tp2)" in by_code["visits"].message
    assert "column patient" in by_code["visits"].message
    assert by_code["look-alikes"].level == "warning"
    for group in ("Q1_1, Q1_2", "Smith, smith", "Trial_scan1, Trial_scan2"):
        assert group in by_code["look-alikes"].message
    assert "P001" not in by_code["look-alikes"].message
    assert report.to_dict()["visits"] == {"P001": ["P001_tp1", "P001_tp2"], "P002": ["P002_tp1"]}


@pytest.mark.parametrize(
    "names",
    [("P1_1", "P1_2"), ("P1", "P1_2"), ("P1a", "P1b"), ("P1-left", "P1-right"), ("v1_P1", "v2_P1"), ("P1", "p1"),
     ("Trial_scan1", "Trial_scan2"), ("2019-01-02", "2019-05-06"), ("scan_1", "scan_2"), ("sub-01_x", "sub-01_y"),
     ("P1_2019", "P1_2020"), ("P1_190102", "P1_190506"), ("P1_c1d1", "P1_c2d1"), ("100001_1", "100001_2")],
)  # fmt: skip
def test_a6_what_merely_looks_like_visits_is_listed(names: tuple[str, str]) -> None:
    assert sorted(names) in [list(group) for group in look_alikes(names).values()]


@given(
    st.lists(
        st.from_regex(r"\A(patient|case|BRATS|sub)[-_]?[0-9]{3}\Z"), min_size=2, max_size=9, unique=True
    ),
)
def test_a6_numbered_patients_do_not_look_like_visits(names: list[str]) -> None:
    assert not look_alikes(names)


def test_a6_many_visits_of_one_name_are_a_warning(tmp_path: Path) -> None:
    for k in range(30):
        (tmp_path / f"Site1_visit{k:03d}_t1.nii.gz").touch()
    (finding,) = [f for f in check_dataset(tmp_path).findings if f.code == "visits"]
    assert finding.level == "warning"
    assert "30 visits of one patient are many" in finding.message


def test_a6_names_of_challenges_say_nothing_of_it(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3, (4, 4, 4), time_points=2)
    assert not {"visits", "look-alikes"} & {f.code for f in check_dataset(tmp_path).findings}


@given(visits=st.lists(st.integers(1, 4), min_size=3, max_size=8), seed=st.integers(0, 9))
def test_a6_no_patient_is_on_two_sides(visits: list[int], seed: int) -> None:
    names = [f"P{k}_tp{visit}" for k, count in enumerate(visits) for visit in range(count)]
    owners = {name: identify(name).patient_id for name in names}
    split = split_patients(
        [_case(name, owner) for name, owner in owners.items()], train=0.5, val=0.25, test=0.25, seed=seed
    )
    sides = {patient: part for part, patients in split.to_dict().items() for patient in patients}
    for k, count in enumerate(visits):
        assert len({sides[owners[f"P{k}_tp{visit}"]] for visit in range(count)}) == 1


def _case(name: str, patient: str) -> Case:

    return Case(name, patient, {}, None, "canonical", "canonical")
