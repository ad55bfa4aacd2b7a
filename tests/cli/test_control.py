"""Stage 3 from the command line: train, validate, test, and volumes under a segmentation."""

import json
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import nibabel as nib
import numpy as np
import pytest

from tests.cli.test_end_to_end import assert_same_geometry
from tests.faults.test_bad_input import assert_refused
from tests.harness import Ran, Workspace, run

TRAIN = "prod9-train-maskgit-controlnet"
STAGE3 = """
stage: maskgit_controlnet
output_dir: {folder}/stage3
inputs: {{transformer: {stage2}}}
data:
  root: {cohort}
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
  store_dir: {stage2}/store
model: {{channels: [4, 4]}}
sampler: {{steps: 3, order: halton}}
validation: {{num_volumes: 2}}
training: {{max_steps: 4, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}, ema: {{decay: 0.9}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""


@dataclass(frozen=True)
class Control:
    """A config, the run trained with it, and what training printed."""

    config: Path
    run: Path
    ran: Ran
    seg: Path


@pytest.fixture(scope="module")
def control(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Control:
    folder = tmp_path_factory.mktemp("control")
    config = folder / "stage3.yaml"
    config.write_text(STAGE3.format(folder=folder, stage2=workspace.run2, cohort=workspace.cohort))
    ran = run(TRAIN, "train", "--config", config, "--json")
    assert ran.code == 0, ran.err
    return Control(config, folder / "stage3", ran, sorted(workspace.cohort.rglob("*-seg.nii.gz"))[0])


def test_training_leaves_a_run_folder(control: Control) -> None:
    assert control.ran.json["step"] == 4
    assert {"val/loss", "val/loss_base", "val/fid"} <= set(control.ran.json["metrics"])
    assert (control.run / "checkpoints" / "last.ckpt").is_file()
    assert list((control.run / "samples").glob("*.png"))


@pytest.mark.parametrize("what", ["validate", "test"])
def test_evaluation_prints_metrics(control: Control, what: str) -> None:
    ran = run(TRAIN, what, "--model", control.run, "--json")
    assert ran.code == 0, ran.err
    prefix = {"validate": "val/", "test": "test/"}[what]
    assert all(name.startswith(prefix) for name in ran.json["metrics"])
    assert f"{prefix}loss_base" in ran.json["metrics"]


def test_check_reports_and_writes_nothing(control: Control, tmp_path: Path) -> None:
    args = ["--config", control.config, "--output-dir", tmp_path / "out", "--check", "--json"]
    ran = run(TRAIN, "train", *args)
    assert ran.code == 0, ran.err
    assert ran.json["tokens"] == [4, 4, 4]
    assert ran.json["parameters"] > 0
    assert not list(tmp_path.iterdir())


def test_resume_goes_on_at_the_stored_step(control: Control, tmp_path: Path) -> None:
    train = ["train", "--config", control.config, "--output-dir", tmp_path / "run", "--json"]
    assert run(TRAIN, *train, "--set", "training.max_steps=1").json["step"] == 1
    resumed = run(TRAIN, *train, "--set", "training.max_steps=2", "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.json["step"] == 2


def test_generate_follows_files_and_folders(control: Control, workspace: Workspace, tmp_path: Path) -> None:
    args = ["--model", control.run, "--label", "T1ce", "--json", "-o", tmp_path / "one"]
    one = run("prod9", "generate", "control", "--seg", control.seg, *args, "-n", 2)
    assert one.code == 0, one.err
    name = control.seg.name.removesuffix("-seg.nii.gz")
    assert one.json["made"] == [f"{name}_T1ce_0000.nii.gz", f"{name}_T1ce_0001.nii.gz"]
    placed = nib.load(tmp_path / "one" / f"{name}_seg.nii.gz")
    assert set(np.unique(placed.dataobj)) == {0, 1, 2, 3}
    space = int(nib.load(control.seg).header["sform_code"])
    assert space > 1, "otherwise the next line shows nothing"
    for made in one.json["made"]:
        assert int(nib.load(tmp_path / "one" / made).header["sform_code"]) == space
        assert_same_geometry(tmp_path / "one" / made, placed.affine, (16, 16, 16))
        data = nib.load(tmp_path / "one" / made).get_fdata()
        assert 0.0 <= data.min() < data.max() <= 1.0
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert set(manifest["settings"]["sha256"]) == {"controlnet", "transformer", "autoencoder"}
    assert manifest["files"][f"{name}_seg.nii.gz"]["found_by"] == "case"

    args[-1] = tmp_path / "all"
    every = run(TRAIN, "generate", "--seg", workspace.cohort, *args)
    assert every.code == 0, every.err
    assert len(every.json["made"]) == 6
    assert (tmp_path / "all" / one.json["made"][0]).read_bytes() == (
        tmp_path / "one" / one.json["made"][0]
    ).read_bytes()


def test_generate_goes_on_where_it_stopped(control: Control, tmp_path: Path) -> None:
    args = [
        "control",
        "--seg",
        control.seg,
        "--model",
        control.run,
        "--label",
        "T2",
        "-o",
        tmp_path,
        "--json",
    ]
    first = run("prod9-generate", *args)
    more = run("prod9-generate", *args, "-n", 2)
    assert more.json["kept"] == 1
    assert len(more.json["made"]) == 1
    assert more.json["made"] != first.json["made"]
    other = run("prod9-generate", *args, "--control-strength", 0.5)
    assert_refused(other, 2, "control", "other settings")


def test_strength_0_is_the_volume_of_the_label_alone(
    control: Control, workspace: Workspace, tmp_path: Path
) -> None:
    common = ["--label", "FLAIR", "--seed", 3, "--steps", 3]
    ran = run(
        "prod9-generate", "control", "--seg", control.seg, "--model", control.run, *common,
        "--control-strength", 0, "-o", tmp_path / "control", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    label = run("prod9-generate", "label", "--model", workspace.run2, *common, "-o", tmp_path / "label")
    assert label.code == 0, label.err
    made = nib.load(tmp_path / "control" / ran.json["made"][0]).get_fdata()
    np.testing.assert_array_equal(made, nib.load(tmp_path / "label" / "FLAIR_0000.nii.gz").get_fdata())


def test_generate_finds_models_that_moved(control: Control, workspace: Workspace, tmp_path: Path) -> None:
    for run_folder, name in ((control.run, "c"), (workspace.run2, "t"), (workspace.run1, "a")):
        copytree(run_folder, tmp_path / name, ignore=lambda *_: {"store"})
    args = ["control", "--seg", control.seg, "--model", tmp_path / "c", "-o", tmp_path / "out", "--check"]
    moved = ["--transformer", tmp_path / "t", "--autoencoder", tmp_path / "a"]
    ran = run("prod9-generate", *args, *moved, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["volumes"] == 4
    assert not (tmp_path / "out").exists()


def test_export_folders_are_models_too(control: Control, workspace: Workspace, tmp_path: Path) -> None:
    share = tmp_path / "share"
    steps = [
        (workspace.run1, "a"),
        (workspace.run2, "t", "--autoencoder", share / "a"),
        (control.run, "c", "--transformer", share / "t"),
    ]
    for model, name, *upstream in steps:
        ran = run("prod9", "export", model, share / name, *upstream)
        assert ran.code == 0, ran.err
    share.rename(tmp_path / "moved")
    card = (tmp_path / "moved" / "c" / "README.md").read_text()
    assert "MaskGiT control network" in card
    assert "Needs the transformer at `../t`" in card
    args = ["control", "--seg", control.seg, "--label", "T1", "--json", "-o"]
    files = []
    for model, out in ((control.run, "run"), (tmp_path / "moved" / "c", "export")):
        ran = run("prod9-generate", *args, tmp_path / out, "--model", model)
        assert ran.code == 0, ran.err
        files.append(nib.load(tmp_path / out / ran.json["made"][0]).get_fdata())
    np.testing.assert_array_equal(*files)


def test_a_segmentation_without_its_scan_is_used_with_a_warning(control: Control, tmp_path: Path) -> None:
    alone = tmp_path / "drawn.nii.gz"
    alone.write_bytes(control.seg.read_bytes())
    args = ["control", "--seg", alone, "--model", control.run, "--label", "T1", "--check"]
    ran = run("prod9-generate", *args, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "--reference SCAN" in ran.err
    scan = next(control.seg.parent.glob("*-t1n.nii.gz"))
    quiet = run("prod9-generate", *args, "-o", tmp_path / "out", "--reference", scan)
    assert "--reference" not in quiet.err


def write_seg(path: Path, *values: int) -> Path:
    seg = np.zeros((16, 16, 16), dtype=np.int16)
    seg.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(seg, np.diag([4.0, 4.0, 4.0, 1.0])), path)
    return path


class TestRefusals:
    def generate(self, control: Control, tmp_path: Path, *args: object) -> Ran:
        common = ["--model", control.run, "--label", "T1", "-o", tmp_path / "out"]
        return run("prod9-generate", "control", *common, *args)

    def test_labels_outside_the_scheme(self, control: Control, tmp_path: Path) -> None:
        seg = write_seg(tmp_path / "s.nii.gz", 1, 9)
        assert_refused(self.generate(control, tmp_path, "--seg", seg), 1, "s.nii.gz", "got 9", "scheme")
        seg = write_seg(tmp_path / "r.nii.gz", 4)
        ran = self.generate(control, tmp_path, "--seg", seg, "--label-scheme", "brats2024")
        assert_refused(ran, 1, "r.nii.gz", "labels from 0 to 3, got also 4")

    def test_no_segmentation(self, control: Control, tmp_path: Path) -> None:
        assert_refused(self.generate(control, tmp_path), 2, "expected a segmentation", "--seg")
        ran = self.generate(control, tmp_path, "--seg", tmp_path / "gone.nii.gz")
        assert_refused(ran, 1, "gone.nii.gz", "nothing there")
        (tmp_path / "empty").mkdir()
        assert_refused(self.generate(control, tmp_path, "--seg", tmp_path / "empty"), 1, "empty", "got none")

    def test_a_reference_for_many(self, control: Control, workspace: Workspace, tmp_path: Path) -> None:
        args = ["--seg", workspace.cohort, "--reference", control.seg]
        assert_refused(self.generate(control, tmp_path, *args), 2, "--reference", "single", "got 6")

    def test_a_scan_on_another_grid(self, control: Control, tmp_path: Path) -> None:
        seg = write_seg(tmp_path / "s.nii.gz", 1)
        scan = next(control.seg.parent.glob("*-t1n.nii.gz"))
        ran = self.generate(control, tmp_path, "--seg", seg, "--reference", scan)
        assert_refused(ran, 1, "s.nii.gz", scan.name, "voxel grid")

    def test_the_checkpoint_of_another_stage(
        self, control: Control, workspace: Workspace, tmp_path: Path
    ) -> None:
        args = ["control", "--seg", control.seg, "-o", tmp_path / "out", "--model", workspace.run2]
        text = "stage maskgit_controlnet or maisi_controlnet, got stage transformer"
        assert_refused(run("prod9-generate", *args), 1, text)

    def test_another_transformer(self, control: Control, workspace: Workspace, tmp_path: Path) -> None:
        other = tmp_path / "other"
        ran = run(
            "prod9-train-transformer", "train", "--config", workspace.stage2, "--output-dir", other,
            "--set", "training.max_steps=1", "--set", "callbacks.num_samples=0", "--seed", 5,
            "--set", f"data.store_dir={workspace.run2}/store",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        refused = self.generate(control, tmp_path, "--seg", control.seg, "--transformer", other)
        assert_refused(refused, 1, "expected the transformer that", "SHA-256")

    def test_a_config_that_does_not_fit_the_base(self, control: Control, tmp_path: Path) -> None:
        args = ["train", "--config", control.config, "--output-dir", tmp_path / "out"]
        assert_refused(run(TRAIN, *args, "--set", "data.grid=[16, 16, 24]"), 2, "data.grid", "[16, 16, 16]")
        assert_refused(run(TRAIN, *args, "--set", "inputs.transformer=null"), 2, "inputs.transformer")
        gone = run(TRAIN, *args, "--set", f"inputs.transformer={tmp_path / 'gone'}")
        assert_refused(gone, 2, "inputs.transformer", "gone")
        assert not (tmp_path / "out").exists()
