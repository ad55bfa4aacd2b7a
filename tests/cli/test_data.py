"""``prod9 data simulate``: the command around the simulation."""

import json
from pathlib import Path

import pytest

from prod9.cli.app import app
from prod9.cli.shared import run
from prod9.data.layouts.find import find_cases
from prod9.data.simulated import cohort as simulation
from tests.fixtures import write_brats_tree


def simulate(folder: Path, *more: str) -> int:
    return run(app, ["data", "simulate", str(folder), "--spacing", "8", *more])


def test_a_cohort_that_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path, "-n", "1") == 0
    assert "1 simulated patient," in capsys.readouterr().out
    first = (tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t1n.nii.gz").stat().st_mtime_ns
    assert simulate(tmp_path, "-n", "2", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["num_subjects"] == 2
    assert report["output_dir"] == str(tmp_path)
    assert "Simulating patients" in captured.err
    assert (tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t1n.nii.gz").stat().st_mtime_ns == first
    assert len(find_cases(tmp_path, require_seg=True)) == 2


@pytest.mark.parametrize(
    "option", [("--num-samples", "0"), ("--spacing", "0.1"), ("--seed", "-1"), ("--workers", "0")]
)
def test_wrong_options(tmp_path: Path, option: tuple[str, str]) -> None:
    assert run(app, ["data", "simulate", str(tmp_path / "cohort"), *option]) == 2
    assert not (tmp_path / "cohort").exists()


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path, "-n", "1") == 0
    assert simulate(tmp_path, "-n", "1", "--seed", "1") == 2
    assert "expected a cohort with seed 1, got one with other settings (0)" in capsys.readouterr().err


def test_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert simulate(tmp_path / "file" / "cohort") == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "make_phantom", interrupted)
    assert simulate(tmp_path) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("convert", "--format", "brats"), ("preprocess", "--no-strip")])
def test_a_place_that_cannot_be_written_is_named(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_brats_tree(tmp_path / "cohort", 1, (32, 36, 28))
    (tmp_path / "file").write_text("", encoding="utf-8")
    places = [str(tmp_path / "cohort"), str(tmp_path / "file" / "out")]
    assert run(app, ["data", words[0], *places, *words[1:]]) == 1
    assert "cannot be written to" in capsys.readouterr().err
