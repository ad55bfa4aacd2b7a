"""``prod9 augment``: from real patients to a data set with audited synthetic ones."""

import json
from pathlib import Path

import pytest

from prod9.data.formats.nnunet import SPLITS
from prod9.data.layouts.find import find_cases
from prod9.errors import ConfigError
from prod9.training.patient_models import PatientModelStep
from tests.fixtures import write_brats_tree
from tests.harness import Ran, Workspace, later_models, run


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Twelve patients, five of whom are held out."""
    root = tmp_path / "real"
    write_brats_tree(root, 12, seed=3)
    patients = [case.patient_id for case in find_cases(root)]
    parts = {"train": patients[:6], "val": patients[6:7], "test": patients[7:]}
    (tmp_path / "split.json").write_text(json.dumps({"format": 1, **parts}))
    return root


def augment(workspace: Workspace, real: Path, tmp: pytest.TempPathFactory, *args: object) -> Ran:
    translator, control = later_models(tmp.getbasetemp())
    return run(
        "prod9", "augment", real, "--model", workspace.run2, "--in-context", translator, "--control", control,
        "--split", real.parent / "split.json", "-o", real.parent / "out", "--false-alarms", 0.5, "--json", *args,
    )  # fmt: skip


def test_from_patients_to_an_audited_set(
    workspace: Workspace, real: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = real.parent / "out"
    given = ("-n", 3, "--measure", "--measure-steps", 1, "--measure-seeds", 1)
    ran = augment(workspace, real, tmp_path_factory, *given)
    assert ran.code == 0, ran.err
    result = ran.json
    made = {f"BraTS-SYN-{k:05d}-000" for k in range(3)}
    assert {case.case_id for case in find_cases(out / "made")} == made
    # Of whom a volume is suspect is thrown out, by name.
    audit = json.loads((out / "audit" / "audit.json").read_text())
    suspects = {
        part for pair in audit["pairs"] if pair["suspect"] for part in Path(pair["generated"]).parts
    } & made
    assert set(result["suspects"]) == suspects
    kept = made - suspects
    assert {case.case_id for case in find_cases(out / "accepted")} == kept
    described = json.loads((out / "dataset" / "dataset.json").read_text())
    assert set(described["synthetic_cases"]) == kept
    assert described["numTraining"] == 7 + len(kept)
    assert result["tested"] == 5 == len(list((out / "dataset" / "labelsTs").iterdir()))
    for fold in json.loads((out / "dataset" / SPLITS).read_text()):
        assert kept <= set(fold["train"])
        assert not kept & set(fold["val"])
    assert {row["trained_on"] for row in result["dice"]} == {"real", "synthetic", "both"}
    card = (out / "DATA_CARD.md").read_text()
    assert all(name in card for name in suspects)
    assert (out / "dataset" / "CARD.md").read_text() == card
    assert (out / "report.html").is_file()
    # Held-out patients are never followed.
    manifest = json.loads((out / "made" / "manifest.json").read_text())
    followed = {entry["segmentation"] for entry in manifest["files"].values() if "segmentation" in entry}
    assert followed <= {f"BraTS-GLI-{k:05d}-000" for k in range(6)}

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    again = augment(workspace, real, tmp_path_factory, *given)
    assert again.json == result
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before

    part = augment(workspace, real, tmp_path_factory, "-n", 4, "--part", "2/2")
    assert part.code == 0, part.err
    assert "without --part" in part.err


def test_what_is_missing_is_named(
    workspace: Workspace, real: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def refused(*args: object) -> str:
        ran = augment(workspace, real, tmp_path_factory, *args)
        assert ran.code == 2, ran.err
        assert not (real.parent / "out").exists()
        return " ".join(ran.err.split())

    for case in find_cases(real):
        assert case.seg is not None
        case.seg.unlink()
    assert "that show a lesion, got none" in refused()
    few = json.loads((real.parent / "split.json").read_text())
    (real.parent / "split.json").write_text(json.dumps(few | {"val": few["val"] + few["test"], "test": []}))
    assert "expected at least 5 test patients for the audit, got 0" in refused()
    assert "expected a split file" in refused("--split", real.parent / "none.json")


def test_the_split_of_an_export_stands_in_its_header(
    workspace: Workspace, tmp_path: Path, real: Path
) -> None:
    from prod9.cli.augment.models import find_models
    from prod9.data.splits import Split

    export = tmp_path / "export"
    assert run("prod9", "export", workspace.run2, export).code == 0
    given = {
        "model": str(export), "in_context": "x", "control": ["y"], "split": None, "budget": None,
        "false_alarms": 0.5, "folds": 5, "seed": 0, "device": "cpu",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"test patients? for the audit"):
        find_models(workspace.cohort, tmp_path / "out", **given)
    assert Split.load(tmp_path / "out" / "split.json") == Split.load(workspace.run2 / "split.json")
    with pytest.raises(ConfigError, match="--in-context"):
        find_models(real, tmp_path / "out", **{**given, "in_context": None})
    with pytest.raises(ConfigError, match="packaged with prod9"):
        find_models(real, tmp_path / "out", **{**given, "model": "demo/label"})
    with pytest.raises(ConfigError, match="--folds"):
        find_models(real, tmp_path / "out", **{**given, "split": real.parent / "split.json", "folds": 8})
    trained = {**given, "model": None, "in_context": None, "control": None, "false_alarms": 0.05}
    with pytest.raises(ConfigError, match=r"expected at least \d+ patients, so that \d+ can be held out"):
        find_models(real, tmp_path / "out", **trained)


def test_without_models_they_are_planned_from_the_packaged_ones(real: Path, tmp_path: Path) -> None:
    from prod9.training.patient_models import PatientModels, plan_patient_models

    def plan(num: int, factor: float) -> list[PatientModelStep]:
        return plan_patient_models(real, tmp_path, num_patients=num, least_tested=10, factor=factor, seed=3)

    models, steps = PatientModels(tmp_path), plan(40, 0.5)
    assert [Path(step.config.output_dir).name for step in steps] == [
        "stage1", "stage2_label", "stage2", "stage2_refiner", "stage3",
    ]  # fmt: skip
    assert {step.config.data.split.test for step in steps} == {10.5 / 40}
    assert steps[-1].weights is None
    assert steps[-1].config.inputs.transformer == str(models.label) == steps[1].config.output_dir
    assert steps[1].config.training.max_steps == 75
    assert [step.config.data.split.test for step in plan(400, 1.0)] == [0.15] * 5
    with pytest.raises(ConfigError, match="at least 27 patients"):
        plan(24, 1.0)


def test_networks_that_are_trained_are_kept(workspace: Workspace, real: Path) -> None:
    """An evaluation that is interrupted trains the networks that are left, and gives the same scores."""
    from prod9.evaluation.utility import UtilitySettings, evaluate_utility

    kept, trained = real.parent / "kept.jsonl", list[str]()
    settings = UtilitySettings(split=str(real.parent / "split.json"), steps=1, seeds=2, replicates=10)

    def report(what: str, done: int, total: int) -> None:
        trained.extend([what] if what.startswith("Segmenter") else [])
        if len(trained) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_utility(real, real, settings, report=report, keep=kept)
    assert len(kept.read_text().splitlines()) == 3
    kept.write_text(kept.read_text() + '{"key": "cut')
    trained.append("")
    again = evaluate_utility(real, real, settings, report=report, keep=kept)
    assert len(trained) == 5 + 3
    assert again.to_dict()["scores"] == evaluate_utility(real, real, settings).to_dict()["scores"]
