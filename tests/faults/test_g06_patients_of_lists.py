"""A list says whose visit a case is; folders of BraTS and nnU-Net say it by names alone, and it was lost in silence."""

import csv

import pytest

from prod9.data.checking.naming import find_visits
from prod9.data.layouts.find import scan_dataset
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture
def listed(tmp_path):
    """Return a list of four cases of two patients, whose names do not tell."""
    cases = write_brats_tree(tmp_path / "scans", 4)
    path = tmp_path / "list.csv"
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "patient", "T1", "seg"])
        for k, case in enumerate(cases):
            files = [case / f"{case.name}-{kind}.nii.gz" for kind in ("t1n", "seg")]
            table.writerow([f"scan{'abcd'[k]}", f"person{k // 2}", *files])
    return path


@pytest.mark.parametrize(("form", "warned"), [("brats", True), ("nnunet", True), ("bids", False)])
def test_what_a_form_cannot_say_is_said(listed, tmp_path, form, warned):
    if form == "bids":  # whose names need a visit
        listed.write_text(
            "\n".join(listed.read_text().splitlines()[:2] + listed.read_text().splitlines()[3:4])
        )
    ran = run("prod9", "data", "convert", listed, tmp_path / "out", "--format", form, "--folds", "0")
    assert ran.code == 0, ran.err
    assert (
        "2 patients with several cases will count as several patients" in " ".join(ran.err.split())
    ) is warned


def test_names_that_tell_are_no_loss(tmp_path):
    write_brats_tree(tmp_path / "scans", 2, time_points=2)
    ran = run("prod9", "data", "convert", tmp_path / "scans", tmp_path / "out", "--format", "brats")
    assert ran.code == 0
    assert "Warning" not in ran.err


def test_a_patient_that_the_list_names_was_not_guessed(listed):
    assert list(find_visits(scan_dataset(listed).cases)) == []
