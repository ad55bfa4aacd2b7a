"""A list that names one file twice: two patients of one scan would be on both sides of a split."""

import json
from pathlib import Path

import pytest

from prod9.data.layouts.find import find_cases
from prod9.errors import DataError
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture
def scan(tmp_path: Path) -> str:
    write_brats_tree(tmp_path / "tree", 1)
    return str(find_cases(tmp_path / "tree")[0].images["T1"].relative_to(tmp_path))


def test_a_file_belongs_to_one_case_and_modality(tmp_path: Path, scan: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"case,patient,T1\nA,PA,{scan}\nB,PB,tree/../{scan}\n")
    with pytest.raises(DataError, match=r"expected an image of its own as T1 of B, got .* which is T1 of A"):
        find_cases(file, modalities=["T1"])
    ran = run("prod9", "data", "check", file)
    assert ran.code == 1
    assert "which is T1 of A" in " ".join((ran.out + ran.err).split())
    file.write_text(f"case,T1,T2\nA,{scan},{scan}\n")
    with pytest.raises(DataError, match=r"as T2 of A, got .* which is T1 of A"):
        find_cases(file, modalities=["T1", "T2"])
    parts = {part: [{"image": scan, "case": part}] for part in ("training", "validation")}
    file = tmp_path / "list.json"
    file.write_text(json.dumps({**parts, "channel_names": {"0": "T1"}}))
    with pytest.raises(DataError, match=r"as T1 of validation, got .* which is T1 of training"):
        find_cases(file, modalities=["T1"])
