"""What `train` would refuse later, `--check` refuses now; what is doubtful it says."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.cli.checks import run as checks
from tests.fixtures import write_brats_tree
from tests.harness import run

STAGE1, STAGE2 = "prod9-train-autoencoder", "prod9-train-transformer"


@pytest.fixture
def cohort(workspace, tmp_path):
    return Path(shutil.copytree(workspace.cohort, tmp_path / "cohort"))


@pytest.fixture
def checked(workspace, tmp_path):
    def check(*changes, stage=1, args=(), out="new"):
        command, config = ((STAGE1, workspace.stage1), (STAGE2, workspace.stage2))[stage - 1]
        sets = [part for change in changes for part in ("--set", change)]
        ran = run(
            command, "train", "--config", config, "--output-dir", tmp_path / out, "--check", *sets, *args
        )
        assert not (tmp_path / out).exists() or out != "new"
        return ran

    return check


def test_b10_what_does_not_fit_into_memory_fails(checked, monkeypatch):
    monkeypatch.setattr(checks, "device_memory", lambda _: 2**20)
    ran = checked()
    assert ran.code == 1
    assert "does not fit" in ran.err
    assert "Everything fits" not in ran.out
    ran = checked(args=("--json",))
    assert ran.code == 1
    assert ran.json["errors"]


def test_b10_what_does_not_fit_onto_the_disk_fails(checked, monkeypatch):
    monkeypatch.setattr(checks, "free_disk", lambda _: 10)
    ran = checked()
    assert ran.code == 1
    assert "disk" in ran.err


def test_b10_weights_to_start_from_must_be_there_and_fit(checked, models, tmp_path):
    assert checked(args=("--init-from", tmp_path / "nothing")).code == 1
    wrong = checked(args=("--init-from", models.label))
    assert wrong.code == 1
    assert "expected a checkpoint of stage autoencoder" in wrong.err
    other = checked("model.num_channels=[8, 8, 8]", args=("--init-from", models.stage1))
    assert other.code == 1
    assert str(models.stage1) in other.err
    assert checked(args=("--init-from", models.stage1)).code == 0
    assert checked(stage=2, args=("--init-from", models.label)).code == 0
    assert checked("model.embed_dim=24", stage=2, args=("--init-from", models.label)).code == 1


def test_b10_a_translator_may_start_from_labels_of_its_size(checked, models):
    single = ("model={kind: single_stream, embed_dim: 16, num_blocks: 2, num_heads: 2}",)
    assert checked(*single, stage=2, args=("--init-from", models.label)).code == 0
    wider = ("model={kind: single_stream, embed_dim: 32, num_blocks: 2, num_heads: 2}",)
    ran = checked(*wider, stage=2, args=("--init-from", models.label))
    assert ran.code == 1
    assert "same size" in ran.err


@pytest.mark.parametrize("end", [0.5, 0.98])
def test_b10_a_truncated_file_is_found(checked, cohort, end):
    file = next(cohort.rglob("*-t1c.nii.gz"))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * end)])
    ran = checked(f"data.root={cohort}")
    assert ran.code == 1
    assert str(file) in ran.err


def test_b10_scans_coarser_than_the_grid_are_told(checked):
    ran = checked("data.spacing=[2, 2, 2]", "data.grid=[32, 40, 32]")
    assert ran.code == 0, ran.err
    assert "4 × 4 × 4 mm" in ran.err
    assert "data.spacing" in ran.err
    assert "Everything fits" not in ran.out
    assert "data.spacing" not in checked("data.spacing=[4, 4, 4]").err


def test_b10_a_grid_far_larger_than_the_scans_is_told(checked):
    assert "data.grid" in checked("data.spacing=[4, 4, 4]", "data.grid=[48, 48, 48]").err


def test_b10_different_voxels_need_a_spacing(checked, cohort):
    for path in sorted(cohort.iterdir())[0].glob("*.nii.gz"):
        image = nib.load(path)
        data, affine = np.asarray(image.dataobj), image.affine @ np.diag([0.5, 0.5, 0.5, 1])
        nib.save(nib.Nifti1Image(data, affine), path)
    ran = checked(f"data.root={cohort}")
    assert ran.code == 1
    assert "set data.spacing" in ran.err
    assert checked(f"data.root={cohort}", "data.spacing=[4, 4, 4]").code == 0


def test_b10_a_cohort_of_three_is_told(checked, tmp_path):
    write_brats_tree(tmp_path / "three", 3)
    ran = checked(f"data.root={tmp_path / 'three'}")
    assert ran.code == 0, ran.err
    assert "1 patient in the train split is little" in ran.err
    write_brats_tree(tmp_path / "two", 2)
    assert checked(f"data.root={tmp_path / 'two'}").code == 1


def test_b10_a_part_that_training_needs_must_not_be_empty(checked):
    ran = checked("data.split={train: 1.0, val: 0.0, test: 0.0}")
    assert ran.code == 2
    assert "data.split.val" in ran.err


def test_b10_held_out_patients_were_not_trained_on_before(checked, workspace):
    for seed in range(1, 5):  # another division, until one holds out what the autoencoder saw
        ran = checked(f"data.split={{train: 0.5, val: 0.25, test: 0.25, seed: {seed}}}", stage=2)
        if ran.code:
            break
    assert ran.code == 2
    assert "held out" in ran.err


def test_b10_a_run_that_is_there_needs_resume(workspace):
    command = (STAGE1, "train", "--config", workspace.stage1, "--check")
    ran = run(*command)
    assert ran.code == 2
    assert "--resume" in ran.err
    assert run(*command, "--resume").code == 0
    assert run(*command, "--resume", workspace.folder / "nothing").code == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("data.cache_dir={root}/cache", "outside data.root"),
        ("output_dir={root}/run", "outside data.root"),
        ("data.cache_dir={config}/below_a_file", "data.cache_dir"),
        ("trainer.loggers=[wandb]", "pip install wandb"),
        ("trainer.accelerator=gpu", "CUDA"),
    ],
)
def test_b10_what_the_run_cannot_use_is_refused(workspace, checked, change, text, tmp_path):
    change = change.format(root=workspace.cohort, config=workspace.stage1)
    args = ("--output-dir", f"{workspace.cohort}/run") if change.startswith("output_dir") else ()
    ran = checked(change, args=args)
    assert ran.code in (1, 2)
    assert text in ran.err


def test_b10_more_workers_than_cores_are_told(checked):
    assert "data.num_workers" in checked("data.num_workers=512").err


def test_b10_segmentations_that_training_learns_from_must_be_there(models, cohort, workspace, tmp_path):
    for path in cohort.rglob("*-seg.nii.gz"):
        path.unlink()
    config = workspace.folder / "prod9-train-maskgit-controlnet.yaml"
    ran = run(
        "prod9-train-maskgit-controlnet", "train", "--config", config, "--output-dir", tmp_path / "new",
        "--set", f"data.root={cohort}", "--check",
    )  # fmt: skip
    assert ran.code == 2
    assert "expected segmentations" in ran.err


def test_b10_an_earlier_stage_whose_autoencoder_is_gone_is_refused(models, workspace, tmp_path):
    config = workspace.folder / "prod9-train-maskgit-controlnet.yaml"
    ran = run(
        "prod9-train-maskgit-controlnet", "train", "--config", config, "--output-dir", tmp_path / "new",
        "--set", f"inputs.autoencoder={tmp_path / 'gone'}", "--check",
    )  # fmt: skip
    assert ran.code == 1
    assert "gone" in ran.err


@pytest.mark.parametrize("what", ["validate", "test"])
def test_b10_checks_of_the_other_commands_stay(workspace, what):
    ran = run(STAGE1, what, "--model", workspace.run1, "--check", "--json")
    assert ran.code == 0, ran.err
    empty = (
        "--set",
        "data.split={train: 0.75, val: 0.25, test: 0.0}",
        "--output-dir",
        workspace.folder / "none",
    )
    if what == "test":
        assert run(STAGE1, what, "--model", workspace.run1, "--check", *empty).code == 2
