"""What a later stage was trained on stays: the run keeps it, and an export is whole or refused."""

import json
import shutil
from pathlib import Path

import pytest

from prod9.errors import CheckpointError
from prod9.models.checkpoint_file import read_checkpoint, recorded_sha256, write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager
from tests.harness import Workspace, run, write_configs


@pytest.fixture(scope="module")
def moved_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, trained, and stage 1 trained on until its first best checkpoint is gone."""
    folder = tmp_path_factory.mktemp("bases")
    stage1, stage2 = write_configs(folder)
    train1 = ["prod9-train-autoencoder", "train", "--config", stage1, "--set", "callbacks.num_samples=0"]
    train1 += ["--set", "training.validate_every_steps=2"]
    assert run(*train1, "--set", "training.max_steps=2").code == 0
    (best,) = (folder / "stage1" / "checkpoints").glob("best-*.ckpt")
    assert (
        run("prod9-train-transformer", "train", "--config", stage2, "--set", "training.max_steps=2").code == 0
    )
    for steps in (4, 8, 16, 32):
        # The first checkpoint is the best until a better one comes.
        assert run(*train1, "--set", f"training.max_steps={steps}", "--resume").code == 0
        if not best.exists():
            return folder
    best.unlink()  # as a better one would have had it
    (folder / "stage1" / "checkpoints" / "best.json").write_text("[]")
    return folder


def test_b9_generating_and_going_on_work_after_the_base_moved_on(
    moved_on: Path, tmp_path: Path, caplog
) -> None:
    out = tmp_path / "out"
    ran = run("prod9", "generate", "label", "--label", "T1", "--model", moved_on / "stage2", "-o", out)
    assert ran.code == 0, ran.err
    again = ["--config", moved_on / "stage2.yaml", "--resume", "--set", "training.max_steps=3", "--json"]
    ran = run("prod9-train-transformer", "train", *again)
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 3
    assert "has moved on" in caplog.text
    ran = run("prod9-train-transformer", "validate", "--config", moved_on / "stage2.yaml")
    assert ran.code == 0, ran.err


def test_b9_the_run_can_leave_its_place_alone(moved_on: Path, tmp_path: Path) -> None:
    shutil.copytree(moved_on / "stage2", tmp_path / "elsewhere" / "stage2")
    opened = CheckpointManager.open(tmp_path / "elsewhere" / "stage2")
    recorded = opened.header["inputs"]["autoencoder"]
    recorded["path"] = str(tmp_path / "gone.ckpt")
    loaded = CheckpointManager.load_upstream(opened)
    assert loaded.path == tmp_path / "elsewhere" / "stage2" / "inputs" / "autoencoder.pt"
    assert loaded.sha256 == recorded["sha256"] == recorded_sha256(loaded.path)


def test_b9_an_export_brings_what_it_builds_on(moved_on: Path, tmp_path: Path) -> None:
    ran = run("prod9", "export", moved_on / "stage2", tmp_path / "whole", "--json")
    assert ran.code == 0, ran.err
    assert {"model.safetensors", "autoencoder/model.safetensors"} <= set(ran.json["bytes"])
    (tmp_path / "whole").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "shared" / "model")
    shutil.rmtree(tmp_path / "moved")
    model = tmp_path / "shared" / "model"
    loaded = CheckpointManager.from_pretrained(model)
    assert CheckpointManager.load_upstream(loaded).path == model / "autoencoder"
    assert str(moved_on) not in "".join(path.read_text() for path in model.rglob("*.json"))
    ran = run("prod9", "generate", "label", "--label", "T2", "--model", model, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err


def test_b9_an_export_of_an_export_is_whole_too(moved_on: Path, tmp_path: Path) -> None:
    first = CheckpointManager.export(moved_on / "stage2", tmp_path / "first")
    second = CheckpointManager.export(first, tmp_path / "second")
    shutil.rmtree(first)
    assert CheckpointManager.load_upstream(CheckpointManager.from_pretrained(second)).network is not None


def alone(moved_on: Path, folder: Path) -> Path:
    """Return a checkpoint of stage 2 far from everything that it builds on."""
    content, _ = read_checkpoint(moved_on / "stage2" / "checkpoints" / "last.ckpt")
    content["prod9"]["inputs"]["autoencoder"] |= {"path": "/nowhere/a.ckpt", "relative": "../nowhere/a.ckpt"}
    write_checkpoint(content, folder / "alone.ckpt")
    return folder / "alone.ckpt"


def test_b9_an_export_that_cannot_be_whole_is_refused_with_the_option(moved_on: Path, tmp_path: Path) -> None:
    last = alone(moved_on, tmp_path)
    ran = run("prod9", "export", last, tmp_path / "out")
    assert ran.code == 1
    assert "--autoencoder" in ran.err
    assert not list((tmp_path / "out").glob("*"))
    kept = moved_on / "stage2" / "inputs" / "autoencoder.pt"
    CheckpointManager.export(kept, tmp_path / "ae")
    ran = run("prod9", "export", last, tmp_path / "out", "--autoencoder", tmp_path / "ae")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "out" / "autoencoder").exists()


def test_b9_a_missing_base_names_the_option(moved_on: Path, tmp_path: Path) -> None:
    model = alone(moved_on, tmp_path)
    ran = run("prod9", "generate", "label", "--model", model, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "--autoencoder" in ran.err


def test_b9_values_that_half_precision_cannot_hold_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    content, _ = read_checkpoint(CheckpointManager.resolve(workspace.run1))
    name = next(n for n in content["state_dict"] if n.startswith("autoencoder.") and n.endswith("weight"))
    content["state_dict"][name].view(-1)[0] = 1e6
    write_checkpoint(content, tmp_path / "large.ckpt")
    ran = run("prod9", "export", tmp_path / "large.ckpt", tmp_path / "out", "--half")
    assert ran.code == 1
    assert "float32" in ran.err
    assert run("prod9", "export", tmp_path / "large.ckpt", tmp_path / "out").code == 0


def test_b9_a_file_that_was_named_and_changed_is_still_refused(moved_on: Path, tmp_path: Path) -> None:
    """Only a run named by its folder may move on; a file is what the user meant."""
    manifest = json.loads((moved_on / "stage1" / "metrics.json").read_text())
    assert manifest["step"] > 2
    again = ["--config", moved_on / "stage2.yaml", "--resume", "--set", "training.max_steps=4"]
    named = moved_on / "stage1" / "checkpoints" / "last.ckpt"
    ran = run("prod9-train-transformer", "train", *again, "--set", f"inputs.autoencoder={named}")
    assert ran.code == 1
    assert "tokens mean something else" in ran.err


def test_b9_a_place_that_holds_another_file_is_passed_over(moved_on: Path, tmp_path: Path) -> None:
    shutil.copytree(moved_on / "stage2", tmp_path / "stage2")
    opened = CheckpointManager.open(tmp_path / "stage2")
    recorded = opened.header["inputs"]["autoencoder"]
    recorded["path"] = str(moved_on / "stage1" / "checkpoints" / "last.ckpt")
    assert CheckpointManager.load_upstream(opened).sha256 == recorded["sha256"]
    shutil.rmtree(tmp_path / "stage2" / "inputs")
    with pytest.raises(CheckpointError, match="tokens mean something else"):
        CheckpointManager.load_upstream(opened)
