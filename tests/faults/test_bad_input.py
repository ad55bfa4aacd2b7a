"""Each fault of a user gives one message with the file or key and the remedy, and the right exit code."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.harness import Ran, Workspace, run, write_configs

Fault = Callable[[Path], None]


def assert_refused(ran: Ran, code: int, *texts: object) -> None:
    assert ran.code == code, ran.err
    assert ran.err.count("Error:") == 1, ran.err
    assert "Traceback" not in ran.err
    assert "--debug" not in ran.err, "that hint belongs to bugs"
    for text in texts:
        assert str(text) in ran.err


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def configs(tmp_path: Path) -> tuple[Path, Path]:
    """Both configs and their cohort in a folder of this test's own; nothing is trained."""
    return write_configs(tmp_path)


def first_image(folder: Path) -> Path:
    return sorted((folder / "cohort").rglob("*-t1n.nii.gz"))[0]


# -- configuration: exit code 2 ---------------------------------------------------------------------


def test_unset_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRATS_DIR", raising=False)
    ran = run("prod9-train-autoencoder", "train", "--config", "maskgit/brats/stage1/fsq_x8")
    assert_refused(ran, 2, "data.root", "BRATS_DIR", "export BRATS_DIR=")


def test_typo_in_a_key(configs: tuple[Path, Path]) -> None:
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], "--set", "training.max_stpes=3")
    assert_refused(ran, 2, "training.max_stpes", "did you mean 'max_steps'")


def test_typo_in_a_name() -> None:
    ran = run("prod9-train-autoencoder", "train", "--config", "demo/stage11")
    assert_refused(ran, 2, "demo/stage11", "did you mean 'demo/stage1'")


def test_config_of_another_stage(configs: tuple[Path, Path]) -> None:
    ran = run("prod9-train-autoencoder", "train", "--config", configs[1])
    assert_refused(ran, 2, configs[1], "prod9-train-transformer")


def test_sharding_a_stage_that_is_not_sharded(configs: tuple[Path, Path]) -> None:
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], "--set", "trainer.strategy=fsdp")
    assert_refused(
        ran, 2, "trainer.strategy: expected auto or ddp for stage autoencoder, got fsdp", "use auto"
    )


@pytest.mark.parametrize("key", ["sliding_window.roi_size", "data.crop_size", "data.grid"])
def test_sides_that_do_not_fit_the_downsampling(configs: tuple[Path, Path], key: str) -> None:
    changes = ["--set", "sliding_window.strategy=sliding_window", "--set", f"{key}=[16, 14, 16]"]
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], *changes)
    assert_refused(ran, 2, key, "factor 4", "[16, 16, 16]")


def test_missing_perceptual_weights(configs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PROD9_WEIGHTS_DIR", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(configs[0].parent / "nowhere"))
    changes = ["--set", "loss.perceptual.network=vgg", "--set", "loss.perceptual.weight=1"]
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], *changes)
    assert_refused(ran, 2, "vgg16-397923af.pth", "PROD9_WEIGHTS_DIR", "focal_frequency")


def test_no_upstream(configs: tuple[Path, Path]) -> None:
    ran = run("prod9-train-transformer", "train", "--config", configs[1])
    assert_refused(ran, 2, "inputs.autoencoder", configs[0].parent / "stage1", "train the autoencoder first")


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        ("model.patch_size=3", "data.grid", "[24, 24, 24]"),
        ("data.grid=[16, 18, 16]", "data.grid", "[16, 20, 16]"),
        ("data.intensity.upper=90", "data.intensity", "99.5"),
    ],
)
def test_stage2_that_does_not_fit_stage1(
    workspace: Workspace, tmp_path: Path, change: str, key: str, remedy: str
) -> None:
    args = ["--config", workspace.stage2, "--output-dir", tmp_path / "run", "--set", change]
    assert_refused(run("prod9-train-transformer", "train", *args), 2, key, remedy, workspace.run1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("below_a_file", [True, False])
def test_unwritable_output(configs: tuple[Path, Path], below_a_file: bool) -> None:
    blocker = configs[0].parent / "blocker"
    blocker.write_text("a file")
    output = blocker / "run" if below_a_file else blocker
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], "--output-dir", output)
    assert_refused(ran, 2, "output_dir", output)
    assert blocker.read_text() == "a file"


def test_neither_config_nor_model() -> None:
    assert_refused(run("prod9-train-autoencoder", "validate"), 2, "--model", "--config")


def test_resume_and_init_from(configs: tuple[Path, Path]) -> None:
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], "--resume", "--init-from", "x")
    assert_refused(ran, 2, "--resume", "--init-from")


def test_device_that_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    args = ["--model", workspace.run2, "--output-dir", tmp_path, "--device", "cuda:99"]
    assert_refused(run("prod9-generate", "label", *args), 2, "cuda:99")


def test_empty_test_split(configs: tuple[Path, Path], workspace: Workspace) -> None:
    changes = [f"--set=data.split={part}" for part in ("{train: 0.8, val: 0.2, test: 0.0}",)]
    output = configs[0].parent / "other"
    ran = run(
        "prod9-train-autoencoder", "test", "--config", configs[0], "--model", workspace.run1,
        "--output-dir", output, *changes,
    )  # fmt: skip
    assert ran.code in (1, 2), ran.err
    assert_refused(ran, ran.code, "test", "data.split")


# -- data: exit code 1 ------------------------------------------------------------------------------


def test_missing_folder(configs: tuple[Path, Path]) -> None:
    nowhere = configs[0].parent / "nowhere"
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], "--set", f"data.root={nowhere}")
    assert_refused(ran, 1, nowhere)
    assert not (configs[0].parent / "stage1").exists()


def test_case_without_a_modality(configs: tuple[Path, Path]) -> None:
    gone = sorted((configs[0].parent / "cohort").rglob("*-t1c.nii.gz"))[2]
    gone.unlink()
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0])
    assert_refused(ran, 1, gone.parent.name, "T1ce")
    assert not (configs[0].parent / "stage1").exists()


def _reshape(shape: tuple[int, ...]) -> Fault:
    def fault(path: Path) -> None:
        nib.save(nib.Nifti1Image(np.ones(shape, dtype=np.int16), np.eye(4)), path)

    return fault


def _put_nan(path: Path) -> None:
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float32)
    data[3, 4, 5:7] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def _flip_a_byte(path: Path) -> None:
    """Damage the data but not the gzip stream's structure: only its checksum can tell."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(raw), mtime=0))
    packed[-8] ^= 1
    path.write_bytes(bytes(packed))


def _html(path: Path) -> None:
    path.write_text("<html>404</html>", encoding="utf-8")


FAULTS: dict[str, tuple[Fault, str]] = {
    "2d": (_reshape((16, 18)), "3"),
    "4d": (_reshape((16, 18, 14, 2)), "3"),
    "nan": (_put_nan, "2"),
    "truncated": (_truncate, ""),
    "checksum": (_flip_a_byte, ""),
    "html": (_html, ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_file_in_infer(workspace: Workspace, tmp_path: Path, name: str) -> None:
    fault, text = FAULTS[name]
    bad, good = tmp_path / "in" / "bad.nii.gz", tmp_path / "in" / "good.nii.gz"
    bad.parent.mkdir()
    for target in (bad, good):
        shutil.copy(first_image(workspace.folder), target)
    fault(bad)
    out = tmp_path / "out"
    ran = run("prod9-train-autoencoder", "infer", tmp_path / "in", "-o", out, "-m", workspace.run1)
    assert_refused(ran, 1, bad, text)
    # The others are done all the same, and nothing else is left.
    assert {p.name for p in files_below(out)} == {"good.nii.gz", "manifest.json"}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_file_in_training(configs: tuple[Path, Path], name: str) -> None:
    fault, text = FAULTS[name]
    bad = first_image(configs[0].parent)
    fault(bad)
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0])
    assert_refused(ran, 1, bad, text)
    assert not list(configs[0].parent.rglob("*.ckpt*"))


@pytest.mark.parametrize("name", ["2d", "4d", "html"])
def test_bad_header_in_check(configs: tuple[Path, Path], name: str) -> None:
    fault, text = FAULTS[name]
    bad = first_image(configs[0].parent)
    fault(bad)
    before = files_below(configs[0].parent)
    ran = run("prod9-train-autoencoder", "train", "--config", configs[0], "--check")
    assert_refused(ran, 1, bad, text)
    assert files_below(configs[0].parent) == before


def test_nothing_to_reconstruct(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", tmp_path / "nowhere.nii.gz", workspace.stage1):
        ran = run("prod9-train-autoencoder", "infer", given, "-o", tmp_path / "out", "-m", workspace.run1)
        assert_refused(ran, 1, given, ".nii")
    assert not (tmp_path / "out").exists()


# -- checkpoints: exit code 1 -----------------------------------------------------------------------


def test_wrong_stage(workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    ran = run("prod9-generate", "label", "--model", workspace.run1, "--output-dir", out)
    assert_refused(ran, 1, workspace.run1, "transformer", "autoencoder")
    ran = run("prod9-train-autoencoder", "infer", workspace.cohort, "-o", out, "-m", workspace.run2)
    assert_refused(ran, 1, workspace.run2, "autoencoder", "transformer")
    ran = run(
        "prod9-train-transformer", "train", "--config", workspace.stage2, "--output-dir", out,
        "--set", f"inputs.autoencoder={workspace.run2}",
    )  # fmt: skip
    assert_refused(ran, 1, workspace.run2, "autoencoder", "transformer")
    assert not files_below(out)
    assert not caplog.records, "no other file of the run is tried"


def test_missing_and_foreign_checkpoints(workspace: Workspace, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.ckpt"
    foreign.write_bytes(b"not a checkpoint")
    for model in (tmp_path / "nowhere", tmp_path, foreign):
        ran = run("prod9-generate", "label", "--model", model, "--output-dir", tmp_path / "out")
        assert_refused(ran, 1, model)
    assert not (tmp_path / "out").exists()


def test_damaged_checkpoint_is_named(workspace: Workspace, tmp_path: Path) -> None:
    copy = tmp_path / "last.ckpt"
    source = workspace.run2 / "checkpoints" / "last.ckpt"
    damaged = bytearray(source.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    copy.write_bytes(bytes(damaged))
    shutil.copy(f"{source}.sha256", f"{copy}.sha256")
    ran = run("prod9-generate", "label", "--model", copy, "--output-dir", tmp_path / "out")
    assert_refused(ran, 1, copy, "SHA-256")


def test_autoencoder_of_another_run(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "stage1"
    ran = run(
        "prod9-train-autoencoder", "train", "--config", workspace.stage1, "--output-dir", other,
        "--seed", 5, "--set", "training.max_steps=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    args = ["--model", workspace.run2, "--output-dir", tmp_path / "out", "--autoencoder", other]
    assert_refused(run("prod9-generate", "label", *args), 1, other, "SHA-256")


def test_existing_run_is_not_overwritten(workspace: Workspace) -> None:
    before = {path: path.stat().st_mtime_ns for path in files_below(workspace.run1)}
    ran = run("prod9-train-autoencoder", "train", "--config", workspace.stage1)
    assert_refused(ran, 2, workspace.run1, "--resume")
    assert {path: path.stat().st_mtime_ns for path in files_below(workspace.run1)} == before


# -- outputs ----------------------------------------------------------------------------------------


def test_outputs_of_other_settings(workspace: Workspace, tmp_path: Path) -> None:
    args = ["--model", workspace.run2, "--output-dir", tmp_path, "--label", "T1"]
    assert run("prod9-generate", "label", *args).code == 0
    before = {path: path.read_bytes() for path in files_below(tmp_path)}
    ran = run("prod9-generate", "label", *args, "--seed", 1)
    assert_refused(ran, 2, tmp_path, "seed", "--overwrite")
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == before


def test_file_of_unknown_origin(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "T2_0000.nii.gz").write_text("mine")
    args = ["--model", workspace.run2, "--output-dir", tmp_path, "--label", "T2"]
    ran = run("prod9-generate", "label", *args)
    assert_refused(ran, 2, "T2_0000.nii.gz", "--overwrite")
    assert (tmp_path / "T2_0000.nii.gz").read_text() == "mine"


def test_unknown_label(workspace: Workspace, tmp_path: Path) -> None:
    args = ["--model", workspace.run2, "--output-dir", tmp_path / "out", "--label", "PET"]
    assert_refused(run("prod9-generate", "label", *args), 2, "PET", "T1ce")
    assert not (tmp_path / "out").exists()


def test_output_would_replace_its_input(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    shutil.copy(first_image(workspace.folder), file)
    ran = run("prod9-train-autoencoder", "infer", file, "-o", tmp_path, "-m", workspace.run1)
    assert_refused(ran, 2, file, "--output-dir")


@pytest.mark.parametrize("command", ["infer", "generate"])
def test_unwritable_results(workspace: Workspace, tmp_path: Path, command: str) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file")
    if command == "infer":
        ran = run(
            "prod9-train-autoencoder", "infer", workspace.cohort, "-o", blocker / "x", "-m", workspace.run1
        )
    else:
        ran = run("prod9-generate", "label", "-o", blocker / "x", "-m", workspace.run2)
    assert ran.code in (1, 2), ran.err
    assert_refused(ran, ran.code, blocker)
