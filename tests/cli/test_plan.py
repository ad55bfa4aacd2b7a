"""``prod9 plan``: from a folder to configs that train."""

from pathlib import Path

import pytest

from tests.fixtures import write_brats_tree, write_medmnist3d
from tests.harness import run

SHRINK = [
    f"--set={change}"
    for change in (
        "training.max_steps=1", "training.validate_every_steps=1", "training.lr_schedule.warmup_steps=0",
        "trainer.accelerator=cpu", "trainer.progress=false", "data.num_workers=0", "callbacks.num_samples=0",
    )
]  # fmt: skip
SMALL = [*SHRINK, "--set=model.num_channels=[8, 8, 8]", "--set=model.norm_num_groups=4",
         "--set=loss.adversarial.discriminator.channels=4", "--set=loss.adversarial.start_step=0"]  # fmt: skip


SMALL_DECODER = ["--set=model.embed_dim=16", "--set=model.num_blocks=2", "--set=model.num_heads=2",
                 "--set=sampler.steps=2"]  # fmt: skip


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    write_brats_tree(tmp_path / "data", 7)
    return tmp_path / "data"


def test_a_plan_trains_as_it_stands(tmp_path: Path, cohort: Path) -> None:
    ran = run("prod9", "plan", cohort, "-o", tmp_path / "plan", "--device", "cpu", "--no-calibrate")
    assert ran.code == 0, ran.err
    assert "s per step" in ran.out
    assert f"prod9 train --config {tmp_path / 'plan' / 'stage1.yaml'}" in ran.out
    ran = run("prod9-train-autoencoder", "train", "--config", tmp_path / "plan" / "stage1.yaml", *SMALL)
    assert ran.code == 0, ran.err
    ran = run(
        "prod9-train-transformer", "train", "--config", tmp_path / "plan" / "stage2_label.yaml", *SHRINK,
        *SMALL_DECODER,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run("prod9-train-transformer", "train", "--config", tmp_path / "plan" / "stage2.yaml", *SHRINK,
              *SMALL_DECODER)  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run("prod9-train-maskgit-controlnet", "train", "--config", tmp_path / "plan" / "stage3.yaml", *SHRINK,
              "--set=sampler.steps=2", "--set=validation.num_volumes=0")  # fmt: skip
    assert ran.code == 0, ran.err


def test_a_plan_of_the_other_family_trains(tmp_path: Path, cohort: Path) -> None:
    ran = run(
        "prod9",
        "plan",
        cohort,
        "-o",
        tmp_path / "plan",
        "--device",
        "cpu",
        "--family",
        "maisi",
        "--json",
        "--no-calibrate",
    )
    assert ran.code == 0, ran.err
    assert [Path(stage["config"]).name for stage in ran.json["stages"]] == [
        "maisi_vae.yaml",
        "maisi_diffusion.yaml",
        "maisi_controlnet.yaml",
    ]
    ran = run("prod9-train-maisi-vae", "train", "--config", tmp_path / "plan" / "maisi_vae.yaml", *SHRINK,
              "--set=model.num_channels=[8, 8]", *SMALL[-3:])  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run("prod9-train-maisi-diffusion", "train", "--config", tmp_path / "plan" / "maisi_diffusion.yaml", *SHRINK,
              "--set=sampler.steps=2")  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run("prod9-train-maisi-controlnet", "train", "--config", tmp_path / "plan" / "maisi_controlnet.yaml", *SHRINK,
              "--set=sampler.steps=2", "--set=validation.num_volumes=0")  # fmt: skip
    assert ran.code == 0, ran.err


def test_a_plan_of_a_medmnist3d_file(tmp_path: Path) -> None:
    path = write_medmnist3d(tmp_path / "data")
    ran = run("prod9", "plan", path, "-o", tmp_path / "plan", "--memory", 8, "--family", "all", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["stages"]) == 7
    ran = run("prod9-train-autoencoder", "train", "--config", tmp_path / "plan" / "stage1.yaml", *SMALL,
              "--set=data.batch_size=2")  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run("prod9", "plan", path, "-o", tmp_path / "plan", "--family", "gan")
    assert ran.code == 2
    assert "expected maskgit, maisi or all" in ran.err


def test_a_plan_for_a_gpu_elsewhere(tmp_path: Path, cohort: Path) -> None:
    fingerprint = tmp_path / "fp.json"
    assert run("prod9", "data", "info", cohort, "--output", fingerprint).code == 0
    args = [fingerprint, "-o", tmp_path / "plan", "--memory", 24, "--runs-dir", "elsewhere", "--json"]
    ran = run("prod9", "plan", *args)
    assert ran.code == 0, ran.err
    for stage in ran.json["stages"]:
        assert stage["memory_gib"] <= 24
        assert stage["seconds_per_step"] is None
    assert "output_dir: elsewhere/stage1" in (tmp_path / "plan" / "stage1.yaml").read_text()
    ran = run("prod9", "plan", *args)
    assert ran.code == 2
    assert "--overwrite" in ran.err
    assert run("prod9", "plan", *args, "--overwrite").code == 0


def test_what_cannot_be_planned(tmp_path: Path, cohort: Path) -> None:
    out = tmp_path / "plan"
    ran = run("prod9", "plan", tmp_path / "nowhere", "-o", out)
    assert ran.code == 1
    assert "nowhere" in ran.err
    next(cohort.rglob("*t1c.nii.gz")).unlink()
    ran = run("prod9", "plan", cohort, "-o", out, "--memory", 24)
    assert ran.code == 1
    assert "T1ce is missing" in ran.err
    assert not out.exists()
