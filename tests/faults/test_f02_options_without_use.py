"""Options of ``prod9 generate`` that were accepted and ignored, since what they are about was not there."""

from pathlib import Path

import pytest

from prod9.cli.masks.drawing import Drawing
from prod9.errors import ConfigError
from prod9.pipelines.patients import PatientPipeline
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (case,) = write_brats_tree(tmp_path_factory.mktemp("cohort"), 1)
    return case / f"{case.name}-t1n.nii.gz"


PATIENTS = ("patients", "-n", 1, "-m", "demo/label", "--in-context", "demo/translate")
UNUSED = [
    ("--output-dir", ("translate", "-s", "T1=SCAN", "-t", "T2", "--output", "made.nii.gz", "-o", "OUT")),
    ("--output", ("translate", "-p", "CASE", "-o", "OUT", "--output", "made.nii.gz")),
    (
        "--label-scheme",
        ("inpaint", "-s", "T1=SCAN", "-r", "SCAN", "-o", "OUT", "--label-scheme", "brats2021"),
    ),
    ("--label-scheme", ("control", "-l", "T1", "-o", "OUT", "--label-scheme", "brats2021")),
    ("--label-scheme", (*PATIENTS, "-o", "OUT", "--label-scheme", "brats2021")),
    ("--label-scheme", ("masks", "-m", "demo/masks", "-o", "OUT", "--label-scheme", "brats2021")),
]


@pytest.mark.parametrize(("option", "words"), UNUSED)
def test_f02_an_option_that_would_do_nothing_is_refused(
    scan: Path, tmp_path: Path, option: str, words: tuple[object, ...]
) -> None:
    """``--source … --output-dir DIR`` wrote nothing into DIR; any text was a label scheme where there was no --seg."""
    places = {"SCAN": str(scan), "CASE": str(scan.parent), "OUT": str(tmp_path / "made")}
    given = [str(word) for word in words]
    for name, place in places.items():
        given = [word.replace(name, place) for word in given]
    if given[0] in ("inpaint", "control"):
        given += ["--model", str(tmp_path / "none")]
    ran = run("prod9", "generate", *given)
    assert ran.code == 2, ran.err
    assert option in ran.err
    assert "expected" in ran.err
    assert not (tmp_path / "made").exists()


def test_f02_a_strength_needs_a_control_network() -> None:
    with pytest.raises(ConfigError, match="control_strength: expected control networks with it, got 2"):
        PatientPipeline.from_checkpoints("demo/label", "demo/translate", control_strength=2.0)


def test_f02_training_masks_are_read_as_the_scheme_says(scan: Path) -> None:
    """The scheme of ``--training`` was ignored: a copy in other numbers passed as new."""
    asked = {"pipeline": None, "seed": 0, "originals": (scan.with_name(scan.name.replace("t1n", "seg")),)}
    plain, exchanged = (
        Drawing(**asked, label_scheme=scheme)._known[0]  # pyrefly: ignore[bad-argument-type]
        for scheme in ("auto", "0=0, 1=2, 2=1, 3=3")
    )
    assert plain != exchanged
