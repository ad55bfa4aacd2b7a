"""Patients never cross splits, and a run keeps the split it began with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.data.layouts.find import Case, find_cases
from prod9.data.splits import PARTS, Split, resolve_split, split_patients
from prod9.errors import ConfigError, DataError
from tests.fixtures import write_brats_tree

SETTINGS = {"train": 0.6, "val": 0.2, "test": 0.2, "seed": 0, "file": None}


def make_cases(num_patients: int, time_points: int = 1) -> list[Case]:
    """Cases without files."""
    return [
        Case(f"P{p:03d}-{t}", f"P{p:03d}", {}, None, "brats2023", "brats2023")
        for p in range(num_patients)
        for t in range(time_points)
    ]


@given(
    num_patients=st.integers(3, 60),
    time_points=st.integers(1, 3),
    shares=st.tuples(*[st.integers(1, 10)] * 3),
    seed=st.integers(0, 1000),
)
def test_no_patient_is_in_two_parts(
    num_patients: int, time_points: int, shares: tuple[int, int, int], seed: int
) -> None:
    cases = make_cases(num_patients, time_points)
    train, val, test = (share / sum(shares) for share in shares)
    split = split_patients(cases, train=train, val=val, test=test, seed=seed)
    patients = [{c.patient_id for c in split.select(cases, part)} for part in PARTS]
    assert sum(len(p) for p in patients) == len(set.union(*patients)) == num_patients
    assert all(patients)
    assert sum(len(split.select(cases, part)) for part in PARTS) == len(cases)
    for found, share in zip(patients, (train, val, test), strict=True):
        assert abs(len(found) - share * num_patients) < 3


def test_time_points_of_a_patient_stay_together(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 5, (8, 8, 8), time_points=2)
    cases = find_cases(tmp_path / "cohort")
    split = split_patients(cases, train=0.6, val=0.2, test=0.2, seed=3)
    assert len(cases) == 10
    assert [len(split.select(cases, part)) for part in PARTS] == [6, 2, 2]


def test_the_order_of_the_cases_does_not_matter() -> None:
    cases = make_cases(20)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15, "seed": 4}
    assert split_patients(cases, **shares) == split_patients(cases[::-1], **shares)
    assert split_patients(cases, **shares) != split_patients(cases, **{**shares, "seed": 5})


def test_a_part_without_a_share_stays_empty() -> None:
    split = split_patients(make_cases(7), train=0.8, val=0.2, test=0.0, seed=0)
    assert (len(split.train), len(split.val), split.test) == (6, 1, ())


def test_too_few_patients_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"at least 3 patients .*got 2; add cases"):
        split_patients(make_cases(2), train=0.6, val=0.2, test=0.2, seed=0)


def test_a_patient_in_two_parts_is_refused() -> None:
    with pytest.raises(DataError, match="one part of the split, got a"):
        Split(("a", "b"), ("a",), ())


def test_the_file_of_a_run_wins(tmp_path: Path) -> None:
    cases, path = make_cases(10), tmp_path / "run" / "split.json"
    split = resolve_split(cases, path, settings=SETTINGS)
    other = Split(split.val, split.train, split.test)
    other.save(path, settings=SETTINGS)
    assert resolve_split(cases, path, settings=SETTINGS) == other
    assert Split.from_dict(other.to_dict()) == other


def test_a_split_of_other_cases_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    resolve_split(make_cases(10), path, settings=SETTINGS)
    with pytest.raises(DataError, match=r"split.json: .*1 of them is not in the data \(P009\)"):
        resolve_split(make_cases(9), path, settings=SETTINGS)
    with pytest.raises(DataError, match=r"1 in the data is not in the split \(P010\).*another output_dir"):
        resolve_split(make_cases(11), path, settings=SETTINGS)


def test_other_settings_than_before_are_refused(tmp_path: Path) -> None:
    cases, path = make_cases(10), tmp_path / "split.json"
    resolve_split(cases, path, settings=SETTINGS)
    with pytest.raises(ConfigError, match=r"data.split.seed: expected 0, .* got 1; use another"):
        resolve_split(cases, path, settings={**SETTINGS, "seed": 1})


@pytest.mark.parametrize("left", ["other settings", "other cases", "damaged"])
def test_a_file_that_nothing_was_trained_with_binds_nothing(tmp_path: Path, left: str) -> None:
    cases, path = make_cases(10), tmp_path / "split.json"
    wanted = resolve_split(cases, path, settings=SETTINGS)
    if left == "damaged":
        path.write_text("{")
    else:
        path.unlink()
        resolve_split(
            make_cases(9 if left == "other cases" else 10),
            path,
            settings={**SETTINGS, "seed": left == "other settings"},
        )
    before = path.read_bytes()
    assert resolve_split(cases, path, settings=SETTINGS, trained=False, keep=False) == wanted
    assert path.read_bytes() == before
    assert resolve_split(cases, path, settings=SETTINGS, trained=False) == wanted
    assert Split.load(path) == wanted


def test_a_split_file_of_ones_own(tmp_path: Path) -> None:
    cases, mine = make_cases(4), tmp_path / "mine.json"
    wanted = Split(("P000", "P003"), ("P001",), ("P002",))
    wanted.save(mine)
    found = resolve_split(cases, tmp_path / "split.json", settings={**SETTINGS, "file": str(mine)})
    assert found == wanted == Split.load(tmp_path / "split.json")
    with pytest.raises(ConfigError, match=r"data.split.file: .*does not exist"):
        resolve_split(
            cases, tmp_path / "other.json", settings={**SETTINGS, "file": str(tmp_path / "no.json")}
        )


@pytest.mark.parametrize("content", ["", "[]", '{"train": []}', '{"train": [1], "val": [], "test": []}'])
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"split.json: expected"):
        Split.load(path)


def test_patients_held_out_here_and_trained_on_elsewhere() -> None:
    upstream = Split(("a", "b", "c"), ("d",), ("e",))
    assert Split(("a", "b", "c"), ("d",), ("e",)).trained_elsewhere(upstream) == []
    assert Split(("a", "e"), ("b",), ("c", "d")).trained_elsewhere(upstream) == ["b", "c"]
