"""Modalities and classes may be spelt in any case and by the aliases that file names have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.cli.naming import chosen_labels, known_as, spelt
from prod9.data.layouts.names import TOKENS
from prod9.errors import ConfigError
from tests.harness import run

KNOWN = ["T1", "T1ce", "T2", "FLAIR"]
ALIASES = [(alias, name) for alias, name in TOKENS.items() if name in KNOWN]


@pytest.mark.parametrize(("alias", "name"), ALIASES)
@given(data=st.data())
def test_d_every_alias_in_any_case_is_known(alias, name, data):
    upper = data.draw(st.lists(st.booleans(), min_size=len(alias), max_size=len(alias)))
    spelling = "".join(c.upper() if u else c for c, u in zip(alias, upper, strict=True))
    assert known_as(spelling, KNOWN) == name


def test_d_a_name_as_it_stands_wins_and_nothing_is_guessed():
    assert known_as("t1c", ["T1ce", "t1c"]) == "t1c"
    assert known_as("KIDNEY-right", ["liver", "kidney-right"]) == "kidney-right"
    assert known_as("t1", ["T1 ", "PD"]) == "t1"
    assert known_as("Ct", ["ct", "CT"]) == "Ct", "two could be meant"
    assert known_as("t1c", ["CT"]) == "t1c", "the model has no T1ce"


def test_d_labels_are_chosen_once_each():
    assert chosen_labels(["t1c", "T1ce", "t2f"], KNOWN) == ["T1ce", "FLAIR"]
    assert chosen_labels(["All"], KNOWN) == chosen_labels(None, KNOWN) == KNOWN
    with pytest.raises(ConfigError, match=r"expected one of T1, T1ce, T2, FLAIR, got 'PD'"):
        chosen_labels(["t1", "PD"], KNOWN)
    with pytest.raises(ConfigError, match="expected one of T1ce, got it twice"):
        spelt("--source", {"t1c": 1, "T1ce": 2}, KNOWN)


@pytest.fixture
def scans(workspace):
    case = sorted(workspace.cohort.iterdir())[0]
    return {word: case / f"{case.name}-{word}.nii.gz" for word in ("t1n", "t1c", "t2w", "t2f", "seg")}


def test_d_every_command_takes_them(models, scans, tmp_path):
    def made(name, *command):
        ran = run("prod9", "generate", *command, "-o", tmp_path / name, "--json")
        assert ran.code == 0, ran.err
        return ran.json["made"]

    assert made("label", "label", "-m", models.label, "-l", "t1c", "-l", "T2F") == [
        "T1ce_0000.nii.gz",
        "FLAIR_0000.nii.gz",
    ]
    controlled = made("control", "control", "-m", models.control, "--seg", scans["seg"], "-l", "t1gd")
    assert controlled[0].endswith("_T1ce_0000.nii.gz")
    made("inpaint", "inpaint", "-m", models.label, "-s", scans["t1n"], "-r", scans["seg"], "-l", "t1n")
    order = ("-m", models.label, "--in-context", models.translator, "-n", 1, "--first", "flair")
    made("patients", "patients", *order)
    ran = run(
        "prod9", "generate", "translate", "-m", models.translator, "-s", f"t1n={scans['t1n']}",
        "-s", f"T1C={scans['t1c']}", "-t", "t2f", "--output", tmp_path / "made.nii.gz", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    twice = run(
        "prod9", "generate", "translate", "-m", models.translator, "-s", f"t1n={scans['t1n']}",
        "-s", f"T1={scans['t1c']}", "-t", "t2f", "--output", tmp_path / "twice.nii.gz",
    )  # fmt: skip
    assert twice.code == 2
    assert "twice" in twice.err
