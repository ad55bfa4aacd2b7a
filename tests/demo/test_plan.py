"""What the options of the demo turn into."""

from pathlib import Path

import pytest

from prod9.demo.families import FAMILIES, family_named
from prod9.demo.plan import make_plan, parse_minutes, starter_weights
from prod9.errors import ConfigError


@pytest.mark.parametrize(
    ("family", "from_scratch"), [("maskgit", False), ("maskgit", True), ("maisi", False), ("maisi", True)]
)
def test_the_budget_scales_steps_and_patients_in_proportion(
    tmp_path: Path, family: str, from_scratch: bool
) -> None:
    plain = make_plan(tmp_path, family=family, from_scratch=from_scratch)
    minutes = 2 * FAMILIES[family].minutes[plain.variant]
    double = make_plan(tmp_path, family=family, from_scratch=from_scratch, budget_minutes=minutes)
    assert double.num_patients == 2 * plain.num_patients
    assert double.stage1().training.max_steps == 2 * plain.stage1().training.max_steps
    stage2 = double.stage2(tmp_path / "stage1")
    assert stage2.training.max_steps == 2 * plain.stage2(tmp_path / "stage1").training.max_steps
    assert stage2.inputs.autoencoder == str(tmp_path / "stage1")


def test_a_smaller_budget_keeps_the_patients(tmp_path: Path) -> None:
    plain, half = (
        make_plan(tmp_path),
        make_plan(tmp_path, budget_minutes=FAMILIES["maskgit"].minutes["starter"] / 2),
    )
    assert half.num_patients == plain.num_patients
    assert half.stage1().training.max_steps == round(plain.stage1().training.max_steps / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_stages_see_the_same_patients_on_the_same_grid(tmp_path: Path, family: str) -> None:
    for plan in (make_plan(tmp_path, family=family), make_plan(tmp_path, family=family, quick=True)):
        stage1, stage2 = plan.stage1(), plan.stage2(tmp_path)
        # The held-out volumes carry the labels of stage 1, the generated ones those of stage 2.
        assert stage1.data.label_map == stage2.data.label_map
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
    with pytest.raises(ConfigError, match="--quick, which has a fixed size"):
        make_plan(tmp_path, quick=True, budget_minutes=5)


def test_stages_are_chosen_by_name(tmp_path: Path) -> None:
    assert make_plan(tmp_path, stages="all").stages == ("translation", "control", "masks")
    assert make_plan(tmp_path, stages="control, translation").stages == ("translation", "control")
    assert make_plan(tmp_path).stages == ()
    with pytest.raises(ConfigError, match="--stages: expected all or names among translation, control"):
        make_plan(tmp_path, stages="transaltion")


def test_later_stages_build_on_this_runs_own(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    translator = Path(plan.in_context(tmp_path / "a").output_dir)
    assert plan.in_context(tmp_path / "a").inputs.autoencoder == str(tmp_path / "a")
    assert plan.refiner(translator).inputs.transformer == str(translator)
    # Where TranslationPipeline looks for it.
    assert Path(plan.refiner(translator).output_dir) == translator.with_name(f"{translator.name}_refiner")
    assert plan.stage3(tmp_path / "t").data.store_dir == str(tmp_path / "t" / "store")


@pytest.mark.parametrize("family", FAMILIES)
def test_packaged_weights_are_where_a_family_says(tmp_path: Path, family: str) -> None:
    plan = make_plan(tmp_path, family=family)
    for stage in plan.names.starters:
        weights = plan.initial_weights(stage)
        assert weights is not None
        assert (weights / "model.safetensors").is_file()
        assert make_plan(tmp_path, family=family, from_scratch=True).initial_weights(stage) is None
        assert make_plan(tmp_path, family=family, quick=True).initial_weights(stage) is None
    assert plan.initial_weights(plan.names.control) is None


def test_packaged_weights_are_small_and_all_used(tmp_path: Path) -> None:
    folder = starter_weights("stage1").parent
    used = {stage for family in FAMILIES.values() for stage in family.starters}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == used
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 16 * 2**20


def test_fine_tuning_is_shorter_than_training(tmp_path: Path) -> None:
    started, scratch = make_plan(tmp_path), make_plan(tmp_path, from_scratch=True)
    for make in (lambda plan: plan.in_context(tmp_path), lambda plan: plan.refiner(tmp_path)):
        assert make(started).training.max_steps < make(scratch).training.max_steps
        assert make(started).model == make(scratch).model


def test_the_families_keep_out_of_each_others_way(tmp_path: Path) -> None:
    plans = [make_plan(tmp_path, family=family) for family in FAMILIES]
    assert len({plan.run_dir for plan in plans}) == len(plans)
    folders = [folder for f in FAMILIES.values() for folder in (f.folder, f.quick_folder)]
    assert len(set(folders)) == len(folders)


def test_maisi_trains_its_own_stages(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, family="maisi")
    assert plan.stage1().stage == "maisi_vae"
    assert plan.stage2(tmp_path).stage == "maisi_diffusion"
    assert plan.initial_weights("maisi_diffusion") is None
    assert make_plan(tmp_path, family="maisi", from_scratch=True).variant == "maisi_from_scratch"


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--family: expected one of maskgit, maisi, got 'masigit'\."):
        family_named("masigit")


def test_each_family_has_its_own_stages(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, family="maisi", stages="all")
    assert plan.stages == ("control",)
    control = plan.stage3(tmp_path / "flow")
    assert control.stage == "maisi_controlnet"
    assert control.inputs.diffusion == str(tmp_path / "flow")
    with pytest.raises(ConfigError, match="--stages: expected all or names among control, got translation"):
        make_plan(tmp_path, family="maisi", stages="translation")
