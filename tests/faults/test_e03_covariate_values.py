"""Covariates are those that were written and asked for: of one column, of one row, and within the range."""

from pathlib import Path

import pytest

from prod9.data.covariates import CovariateCoder, CovariateValues
from prod9.errors import DataError
from prod9.evaluation.covariates import _read_table

CODER = CovariateCoder(numbers={"age": (20, 80), "diffusivity": (0, 1e-2)}, categories={"sex": ["F", "M"]})


@pytest.mark.parametrize("ends", [(1e-5, 9e-5), (0.0012345, 0.0012346), (0.0, 1e-2), (20.00001, 20.00002)])
def test_values_drawn_from_a_narrow_range_lie_in_it(ends: tuple[float, float]) -> None:
    """Rounded to four digits behind the point, all patients had the same value, beyond the range."""
    name = "age" if ends[0] > 1 else "diffusivity"
    asked = CovariateValues.of(CODER, {name: f"{ends[0]}:{ends[1]}"}, source="--set-covariate")
    drawn = [asked.drawn(seed)[name] for seed in range(40)]
    assert all(ends[0] <= value <= ends[1] for value in drawn)
    assert len(set(drawn)) > 30


def test_values_of_wide_ranges_have_four_digits_as_before() -> None:
    asked = CovariateValues.of(CODER, {"age": "20:80"}, source="--set-covariate")
    assert asked.drawn(1) == {"age": 73.6783}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,age,diffusivity,sex,age\nA,50,0,F,30\n", "expected one column age, got 2; remove the others"),
        ("case,age,diffusivity,sex,case\nA,50,0,F,B\n", "expected one column case, got 2"),
        ("case,age,diffusivity,sex\nA,NA,0,F\n", "got NA; correct it, leave it out if it is unknown"),
    ],
)
def test_a_table_says_each_thing_once(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        CODER.read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("A,50\nA,40\n", "line 3: expected a case of its own, got A"),
        ("A,50\nB,fifty\n", "line 3: expected a number for age, or an empty cell, got fifty"),
        ("A,50\nB,inf\n", "got inf"),
    ],
)
def test_an_evaluation_reads_the_table_as_training_does(tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "t.csv").write_text("case,age,site\n" + rows.replace("\n", ",X\n"))
    with pytest.raises(DataError, match=said):
        _read_table(tmp_path / "t.csv", ["age"])
    (tmp_path / "t.csv").write_text("case,age,site\nA,50,X\nB,,Y\n")
    assert _read_table(tmp_path / "t.csv", ["age"]) == (["age"], {"A": {"age": 50.0}, "B": {}})
