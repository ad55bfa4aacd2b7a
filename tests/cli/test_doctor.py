"""`prod9 doctor`: what it reports about packages, weights and the machine."""

import json
import re
import tomllib
from pathlib import Path

from prod9.cli.app import app
from prod9.cli.shared import run
from prod9.cli.tools import doctor
from prod9.measures.weights import WEIGHT_FILES


def test_the_report_is_json(capsys):
    assert run(app, ["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"]
    assert report["devices"][0]["name"] == "cpu"
    assert report["disk"]["free"] > 0
    assert set(report["weights"]["files"]) == set(WEIGHT_FILES)


def test_weights_are_found_in_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROD9_WEIGHTS_DIR", str(tmp_path))
    file = tmp_path / WEIGHT_FILES["squeeze"][0]
    file.touch()
    assert doctor.examine()["weights"]["files"]["squeeze"] == str(file)


def test_every_extra_of_a_user_is_reported_and_told_how_to_install():
    root = Path(__file__).resolve().parents[2]
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    told = set(re.findall(r"prod9\[(\w+)\]", (root / "docs" / "how-to" / "install.md").read_text()))
    of_developers = {"bench", "docs", "release"}
    assert extras - of_developers == set(doctor.EXTRAS)
    assert extras - {"release"} == told


def test_a_missing_extra_comes_with_its_command(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "EXTRAS", {"imaginary": ("no_such_module",)})
    assert run(app, ["doctor"]) == 0
    assert "missing: pip install 'prod9[imaginary]'" in capsys.readouterr().out
