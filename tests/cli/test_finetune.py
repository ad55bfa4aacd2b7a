"""``prod9 finetune`` and what it leaves, on the tiny models that command tests share."""

import json
from pathlib import Path

import pytest

from prod9.config.load import load_config
from prod9.config.schema import RefinerConfig
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training.finetuning import Asked, plan_finetuning
from tests.fixtures import write_brats_tree
from tests.harness import Ran, Workspace, run


@pytest.fixture(scope="module")
def tuned(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The label model and its autoencoder, two steps each."""
    folder = tmp_path_factory.mktemp("finetune") / "mine"
    return folder, finetune(workspace, folder, "--json")


def finetune(workspace: Workspace, folder: Path, *args: object, model: object = None) -> Ran:
    return run(
        "prod9", "finetune", "--model", model or workspace.run2, "--data", workspace.cohort,
        "-o", folder, "--max-steps", 2, "--device", "cpu", *args,
    )  # fmt: skip


def test_every_stage_is_trained_further_and_the_folder_is_a_model(
    workspace: Workspace, tuned: tuple[Path, Ran], tmp_path: Path
) -> None:
    folder, ran = tuned
    assert ran.code == 0, ran.err
    assert ran.json["next"] == f"prod9 generate label -m {folder} -l FLAIR -n 4 -o {folder}/volumes"
    opened = CheckpointManager.open(folder, stage="transformer")
    stage1 = CheckpointManager.open(folder / "autoencoder", stage="autoencoder")
    assert opened.header["inputs"]["autoencoder"]["sha256"] == stage1.sha256
    assert opened.sha256 != CheckpointManager.open(workspace.run2).sha256
    assert len(opened.header["split"]["val"]) == 1
    made = run("prod9", "generate", "label", "-m", folder, "-l", "t1c", "-o", tmp_path / "out", "--json")
    assert made.json["made"] == ["T1ce_0000.nii.gz"]


def test_the_same_command_goes_on_and_another_is_refused(
    workspace: Workspace, tuned: tuple[Path, Ran]
) -> None:
    folder, first = tuned
    again = finetune(workspace, folder, "--json")
    assert again.code == 0, again.err
    assert "is finished" in again.err
    before = {name: one["checkpoint"] for name, one in first.json["runs"].items()}
    assert before == {name: one["checkpoint"] for name, one in again.json["runs"].items()}
    other = finetune(workspace, folder, "--seed", 3)
    assert other.code == 2
    assert "expected seed 0" in other.err
    checked = finetune(workspace, folder, "--seed", 3, "--check")
    assert checked.code == 2
    assert checked.err in other.err
    run_of_another = finetune(workspace, workspace.run2)
    assert run_of_another.code == 2
    assert "another run" in run_of_another.err


def test_a_packaged_translator_brings_its_autoencoder_and_refiner(
    workspace: Workspace, tmp_path: Path
) -> None:
    shown = run(
        "prod9", "finetune", "--model", "demo/translate", "--data", workspace.cohort,
        "-o", tmp_path / "mine", "--budget", "1m", "--check", "--json",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    assert list(shown.json["stages"]) == [
        "FSQ autoencoder", "MaskGiT transformer", "Refiner of MaskGiT translations",
    ]  # fmt: skip
    assert shown.json["patients"] == 6
    assert not list((tmp_path / "mine").glob("*"))


@pytest.mark.parametrize("model", ["demo/translate", "demo/label"])
def test_every_stage_of_a_packaged_model_is_trained_by_its_own_settings(
    workspace: Workspace, tmp_path: Path, model: str
) -> None:
    """Also those below it, which it names by a path relative to itself."""
    for step in plan_finetuning(Asked(model=model, data=workspace.cohort, folder=tmp_path)):
        shipped = load_config(f"demo/starter/{step.weights.resolve().name}").training
        own = step.config.training
        assert (own.max_steps, own.learning_rate) == (shipped.max_steps, shipped.learning_rate), step.title


def test_without_segmentations_no_lesion_is_weighed(tmp_path: Path) -> None:
    for with_seg, weights in ((True, [None, 5.0, 3.0]), (False, [None, 1.0, 1.0])):
        write_brats_tree(tmp_path / str(with_seg), 3, with_seg=with_seg)
        asked = Asked(model="demo/translate", data=tmp_path / str(with_seg), folder=tmp_path / "mine")
        losses = [step.config.loss for step in plan_finetuning(asked)]
        assert [getattr(loss, "region_weight", None) for loss in losses] == weights


@pytest.mark.parametrize(("patients", "expected"), [(3, 7), (15, 3)])
def test_a_refiner_of_few_patients_sees_each_target_from_several_sets_of_sources(
    patients: int, expected: int, tmp_path: Path
) -> None:
    """Three sources have seven sets; four modalities of twelve training patients make 144 translations in three."""
    write_brats_tree(tmp_path / "cohort", patients)
    asked = Asked(model="demo/translate", data=tmp_path / "cohort", folder=tmp_path / "mine")
    configs = [step.config for step in plan_finetuning(asked)]
    assert [config.stage for config in configs] == ["autoencoder", "transformer", "refiner"]
    assert isinstance(configs[-1], RefinerConfig)
    assert configs[-1].translations.per_target == expected
    assert all(config.training.validate_start for config in configs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "demo/stage2_refiner"], "corrects"),
        (["--model", "demo/translate", "--budget", "soon"], "expected a time such as 60m"),
        (["--model", "demo/translate", "--budget", "5m", "--max-steps", "3"], "got both"),
        (["--model", "demo/autoencoder", "--budget", "5m"], "give --max-steps instead"),
        (["--model", "demo/translatte"], "did you mean demo/translate?"),
        (["--model", "demo/translate", "--data", "nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    workspace: Workspace, tmp_path: Path, options: list[str], message: str
) -> None:
    data = [] if "--data" in options else ["--data", workspace.cohort]
    ran = run("prod9", "finetune", *options, *data, "-o", tmp_path / "mine")
    assert ran.code in (1, 2)
    assert message in ran.err
    assert not list((tmp_path / "mine").glob("*"))


def test_the_record_says_what_was_asked(tuned: tuple[Path, Ran], workspace: Workspace) -> None:
    record = json.loads((tuned[0] / "finetune.json").read_text(encoding="utf-8"))
    assert record["data"] == str(workspace.cohort)
    assert record["steps"] == [2, 2]
    assert record["weights"][-1] == CheckpointManager.open(workspace.run2).sha256
