"""What the options of the demo turn into."""

from pathlib import Path

import pytest

from prod9.demo.plan import NOMINAL_MINUTES, make_plan, parse_minutes
from prod9.errors import ConfigError


def test_the_budget_scales_steps_and_patients_in_proportion(tmp_path: Path) -> None:
    plain, double = make_plan(tmp_path), make_plan(tmp_path, budget_minutes=2 * NOMINAL_MINUTES)
    assert double.num_patients == 2 * plain.num_patients
    assert double.stage1().training.max_steps == 2 * plain.stage1().training.max_steps
    stage2 = double.stage2(tmp_path / "stage1")
    assert stage2.training.max_steps == 2 * plain.stage2(tmp_path / "stage1").training.max_steps
    assert stage2.inputs.autoencoder == str(tmp_path / "stage1")


def test_a_smaller_budget_keeps_the_patients(tmp_path: Path) -> None:
    plain, half = make_plan(tmp_path), make_plan(tmp_path, budget_minutes=NOMINAL_MINUTES / 2)
    assert half.num_patients == plain.num_patients
    assert half.stage1().training.max_steps == round(plain.stage1().training.max_steps / 2)


def test_both_stages_see_the_same_patients_on_the_same_grid(tmp_path: Path) -> None:
    for plan in (make_plan(tmp_path), make_plan(tmp_path, quick=True)):
        stage1, stage2 = plan.stage1(), plan.stage2(tmp_path)
        assert stage1.data.split == stage2.data.split
        assert stage1.data.grid == stage2.data.grid
        assert stage1.data.spacing == (plan.spacing_mm,) * 3
        assert stage1.data.split.test > 0


@pytest.mark.parametrize(("text", "minutes"), [("60m", 60), ("1.5h", 90), ("90s", 1.5), (" 5 m ", 5)])
def test_times_are_read(text: str, minutes: float) -> None:
    assert parse_minutes(text) == pytest.approx(minutes)


@pytest.mark.parametrize("text", ["", "60", "m", "-5m", "5 days"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget: expected a time such as 60m"):
        parse_minutes(text)


def test_quick_has_no_budget(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--quick has a fixed size"):
        make_plan(tmp_path, quick=True, budget_minutes=5)
