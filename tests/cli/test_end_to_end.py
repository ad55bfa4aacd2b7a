"""From a folder of scans to generated NIfTI files, with the commands alone."""

import json
from pathlib import Path
from shutil import copytree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from prod9 import volumes
from tests.harness import Workspace, run
from tests.nifti_files import geometry_bytes

MODALITIES = ["T1", "T1ce", "T2", "FLAIR"]


def assert_same_geometry(
    path: Path, affine: np.ndarray, shape: tuple[int, ...], source: Path | None = None
) -> None:
    """Compare what nibabel and SimpleITK make of ``path`` with what it should be, and its header with the source's."""
    image = nib.load(path)
    assert image.shape == shape
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    if source is None:
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) > 0
    else:
        assert geometry_bytes(path) == geometry_bytes(source)
    itk = sitk.ReadImage(str(path))
    assert itk.GetSize() == shape
    np.testing.assert_allclose(itk.GetSpacing(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-4)
    for index in ((0, 0, 0), tuple(n - 1 for n in shape)):
        lps = np.array(itk.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(lps * [-1, -1, 1], (affine @ [*index, 1])[:3], atol=1e-3)


# -- train, validate, test --------------------------------------------------------------------------


def test_training_leaves_a_run_folder(workspace: Workspace) -> None:
    for ran, folder in ((workspace.train1, workspace.run1), (workspace.train2, workspace.run2)):
        assert ran.json["step"] == 4
        assert Path(ran.json["checkpoint"]).parent == folder / "checkpoints"
        assert (folder / "config.yaml").is_file()
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert not list(folder.rglob("*.tmp*"))


@pytest.mark.parametrize("what", ["validate", "test"])
@pytest.mark.parametrize("stage", [1, 2])
def test_evaluation_prints_metrics(workspace: Workspace, what: str, stage: int) -> None:
    command = ["prod9-train-autoencoder", "prod9-train-transformer"][stage - 1]
    config, model = (workspace.stage1, workspace.run1) if stage == 1 else (workspace.stage2, workspace.run2)
    by_config = run(command, what, "--config", config, "--json")
    assert by_config.code == 0, by_config.err
    metrics = by_config.json["metrics"]
    prefix = {"validate": "val/", "test": "test/"}[what]
    assert metrics
    assert all(name.startswith(prefix) for name in metrics)
    if what == "validate":
        # The config inside the checkpoint is as good as the file.
        by_model = run(command, what, "--model", model, "--json")
        assert by_model.json["metrics"] == metrics


def test_print_config_can_be_read_again(workspace: Workspace, tmp_path: Path) -> None:
    args = ["--config", workspace.stage2, "--set", "training.max_steps=7", "--seed", 3, "--print-config"]
    first = run("prod9-train-transformer", "train", *args)
    again = tmp_path / "again.yaml"
    again.write_text(first.out)
    second = run("prod9-train-transformer", "train", "--config", again, "--print-config")
    assert second.out == first.out
    assert "max_steps: 7" in first.out
    assert "seed: 3" in first.out


@pytest.mark.parametrize("stage", [1, 2])
def test_check_reports_and_writes_nothing(workspace: Workspace, tmp_path: Path, stage: int) -> None:
    command = ["prod9-train-autoencoder", "prod9-train-transformer"][stage - 1]
    config = workspace.stage1 if stage == 1 else workspace.stage2
    ran = run(command, "train", "--config", config, "--output-dir", tmp_path / "out", "--check", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["cases"] == 6
    assert ran.json["tokens"] == [4, 4, 4]
    assert (
        ran.json["patients"] == {"train": 3, "val": 2, "test": 1} or sum(ran.json["patients"].values()) == 6
    )
    assert ran.json["files"] == {"16×18×14 at 4.00×4.00×4.00 mm": 30}
    assert ran.json["parameters"] > 0
    assert not list(tmp_path.iterdir())


def test_resume_goes_on_at_the_stored_step(workspace: Workspace, tmp_path: Path) -> None:
    train = ["train", "--config", workspace.stage1, "--output-dir", tmp_path / "run", "--json"]
    assert run("prod9-train-autoencoder", *train, "--set", "training.max_steps=2").json["step"] == 2
    resumed = run("prod9-train-autoencoder", *train, "--set", "training.max_steps=3", "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.json["step"] == 3
    finished = run("prod9-train-autoencoder", *train, "--set", "training.max_steps=3", "--resume", "auto")
    assert finished.json["step"] == 3
    assert "finished" in finished.err


def test_init_from_starts_a_new_run(workspace: Workspace, tmp_path: Path) -> None:
    ran = run(
        "prod9-train-transformer", "train", "--config", workspace.stage2, "--output-dir", tmp_path / "run",
        "--init-from", workspace.run2, "--set", "training.max_steps=1", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 1


# -- infer ------------------------------------------------------------------------------------------


def _head(shape: tuple[int, int, int]) -> np.ndarray:
    """An ellipsoid of int16 intensities between 200 and 900 in a background of 0."""
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(0).integers(200, 900, shape)
    return np.where((axes**2).sum(0) < 0.6, noise, 0).astype(np.int16)


AFFINES = {
    "LPS": np.array([[-4, 0, 0, 10], [0, -4, 0, 20], [0, 0, 4, -5], [0, 0, 0, 1]], dtype=float),
    "PIR": np.array([[0, 0, 3.5, -9], [-4, 0, 0, 7], [0, -2, 0, 3], [0, 0, 0, 1]], dtype=float),
    "oblique": np.array([[3.9, 0.7, 0, 1], [-0.7, 3.9, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]], dtype=float),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("strategy", ["whole", "sliding_window"])
def test_infer_keeps_geometry_and_range(
    workspace: Workspace, tmp_path: Path, name: str, strategy: str
) -> None:
    shape, affine = (17, 13, 27), AFFINES[name]
    data = _head(shape)
    source = tmp_path / "in put [1].nii.gz"
    nib.save(nib.Nifti1Image(data, affine), source)
    ran = run(
        "prod9-train-autoencoder", "infer", source, "-o", tmp_path / "out", "-m", workspace.run1, "--json",
        "--set", f"sliding_window.strategy={strategy}", "--set", "sliding_window.roi_size=[8, 8, 8]",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    made = tmp_path / "out" / source.name
    assert_same_geometry(made, affine, shape, source)
    values = nib.load(made).get_fdata()
    assert values.min() >= data.min()
    assert values.max() <= data.max()
    assert np.array_equal(values == 0, data == 0)
    assert ran.json["files"][source.name]["psnr"] > 0


def test_infer_resamples_to_the_recorded_spacing_and_back(workspace: Workspace, tmp_path: Path) -> None:
    run1 = tmp_path / "run"
    ran = run(
        "prod9-train-autoencoder", "train", "--config", workspace.stage1, "--output-dir", run1,
        "--set", "data.spacing=[5, 5, 5]", "--set", "training.max_steps=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    source = tmp_path / "fine.nii"
    nib.save(nib.Nifti1Image(_head((31, 26, 33)), np.diag([2.0, 2.5, 2.0, 1.0])), source)
    ran = run("prod9-train-autoencoder", "infer", source, "-o", tmp_path / "out", "-m", run1, "--save-tokens")
    assert ran.code == 0, ran.err
    assert_same_geometry(
        tmp_path / "out" / "fine.nii.gz", np.diag([2.0, 2.5, 2.0, 1.0]), (31, 26, 33), source
    )
    with np.load(tmp_path / "out" / "fine_tokens.npz") as stored:
        np.testing.assert_allclose(np.linalg.norm(stored["affine"][:3, :3], axis=0), 5.0)
        assert stored["tokens"].dtype == np.uint16
        assert stored["tokens"].shape == (4, 4, 4)
        assert stored["tokens"].max() < np.prod(stored["levels"])


def test_infer_takes_folders_and_skips_what_is_done(workspace: Workspace, tmp_path: Path) -> None:
    case = next(workspace.cohort.iterdir())
    copytree(case, tmp_path / "in" / "a")
    copytree(case, tmp_path / "in" / "b")
    out = tmp_path / "in" / "out"  # inside the input folder: results are no input
    args = ["infer", tmp_path / "in", "-o", out, "-m", workspace.run1, "--json"]
    first = run("prod9-train-autoencoder", *args)
    assert first.code == 0, first.err
    assert len(first.json["made"]) == 8, "four modalities of two cases, no segmentation"
    assert (out / "b" / f"{case.name}-t2f.nii.gz").is_file()
    gone = out / first.json["made"][3]
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    gone.unlink()
    second = run("prod9-train-autoencoder", *args)
    assert second.json["made"] == [first.json["made"][3]]
    assert second.json["mean"] == first.json["mean"]
    now = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    assert {p for p in now if now[p] != stamps[p]} == {gone}


# -- generate ---------------------------------------------------------------------------------------


def test_generate_writes_volumes_on_the_training_grid(workspace: Workspace, tmp_path: Path) -> None:
    ran = run("prod9-generate", "label", "--model", workspace.run2, "-o", tmp_path, "-n", 2, "--json")
    assert ran.code == 0, ran.err
    assert sorted(ran.json["made"]) == sorted(f"{m}_{k:04d}.nii.gz" for m in MODALITIES for k in range(2))
    affine = nib.load(tmp_path / "T1_0000.nii.gz").affine
    np.testing.assert_allclose(np.diag(affine)[:3], 4.0)
    for name in ran.json["made"]:
        assert_same_geometry(tmp_path / name, affine, (16, 16, 16))
        data = nib.load(tmp_path / name).get_fdata()
        assert data.min() >= 0.0
        assert data.max() <= 1.0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["settings"]["sha256"]) == {"transformer", "autoencoder"}
    assert manifest["files"]["T2_0001.nii.gz"] == {"label": "T2", "index": 1, "seed": 1}


def test_generate_goes_on_and_does_not_depend_on_the_batch(workspace: Workspace, tmp_path: Path) -> None:
    args = ["label", "--label", "FLAIR", "--model", workspace.run2, "--seed", 7, "--json"]
    one = run("prod9", "generate", *args, "-o", tmp_path / "one", "-n", 1)
    assert one.json["made"] == ["FLAIR_0000.nii.gz"]
    more = run("prod9-generate", *args, "-o", tmp_path / "one", "-n", 3)
    assert more.json["made"] == ["FLAIR_0001.nii.gz", "FLAIR_0002.nii.gz"]
    args[0] = "generate"
    batch = run("prod9-train-transformer", *args, "-o", tmp_path / "batch", "-n", 3, "--batch-size", 3)
    assert batch.code == 0, batch.err
    for k in range(3):
        name = f"FLAIR_{k:04d}.nii.gz"
        a, b = (nib.load(tmp_path / folder / name).get_fdata() for folder in ("one", "batch"))
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_generate_obeys_its_flags(workspace: Workspace, tmp_path: Path) -> None:
    args = ["label", "--label", "T1", "--model", workspace.run2, "-o", tmp_path]
    flags = ["--steps", 2, "--temperature", 0.5, "--guidance-scale", 2.0, "--order", "confidence"]
    assert run("prod9-generate", *args, *flags).code == 0
    sampler = json.loads((tmp_path / "manifest.json").read_text())["settings"]["sampler"]
    assert {k: sampler[k] for k in ("steps", "temperature", "guidance_scale", "order")} == {
        "steps": 2,
        "temperature": 0.5,
        "guidance_scale": 2.0,
        "order": "confidence",
    }
    bad = run("prod9-generate", *args, "--order", "spiral")
    assert bad.code == 2
    assert "sampler.order" in bad.err


def test_generate_finds_an_autoencoder_that_moved(workspace: Workspace, tmp_path: Path) -> None:
    copytree(workspace.run2, tmp_path / "stage2")
    copytree(workspace.run1, tmp_path / "elsewhere")
    args = ["label", "--label", "T1", "--model", tmp_path / "stage2", "-o", tmp_path / "out", "--check"]
    ran = run("prod9-generate", *args, "--autoencoder", tmp_path / "elsewhere")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["infer", "generate"])
def test_interrupted_and_run_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = tmp_path / "out"
    args = {
        "generate": ("prod9-generate", "label", "--label", "T2", "-n", 3, "-m", workspace.run2, "-o", out),
        "infer": ("prod9-train-autoencoder", "infer", workspace.cohort, "-m", workspace.run1, "-o", out),
    }[command]
    written: list[Path] = []
    write = volumes.write

    def stop_at_the_second(path: Path, *rest: object, **options: object) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        write(path, *rest, **options)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(volumes, "write", stop_at_the_second)
        stopped = run(*args)
    assert stopped.code == 130
    assert "run the same command again" in stopped.err
    assert list(out.rglob("*.nii.gz")) == written
    stamp = written[0].stat().st_mtime_ns
    again = run(*args, "--json")
    assert again.code == 0, again.err
    assert written[0].relative_to(out).as_posix() not in again.json["made"]
    assert written[0].stat().st_mtime_ns == stamp


def test_overwrite_makes_everything_again(workspace: Workspace, tmp_path: Path) -> None:
    args = ["label", "--label", "T1", "--model", workspace.run2, "-o", tmp_path, "--json"]
    first = run("prod9-generate", *args)
    before = (tmp_path / "T1_0000.nii.gz").read_bytes()
    other = run("prod9-generate", *args, "--seed", 9, "--overwrite")
    assert other.json["made"] == first.json["made"] == ["T1_0000.nii.gz"]
    assert (tmp_path / "T1_0000.nii.gz").read_bytes() != before
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["seed"] == 9


def test_export_folders_are_models_too(workspace: Workspace, tmp_path: Path) -> None:
    from prod9.models.checkpoint_manager import CheckpointManager

    stage1 = CheckpointManager.export(workspace.run1, tmp_path / "share" / "autoencoder")
    stage2 = CheckpointManager.export(workspace.run2, tmp_path / "share" / "generator", autoencoder=stage1)
    (tmp_path / "share").rename(tmp_path / "moved")
    for model, out in ((workspace.run2, "run"), (tmp_path / "moved" / stage2.name, "export")):
        ran = run("prod9-generate", "label", "--label", "T1", "--model", model, "-o", tmp_path / out)
        assert ran.code == 0, ran.err
    files = [tmp_path / out / "T1_0000.nii.gz" for out in ("run", "export")]
    np.testing.assert_array_equal(nib.load(files[0]).get_fdata(), nib.load(files[1]).get_fdata())
    case = next(workspace.cohort.iterdir())
    model = tmp_path / "moved" / stage1.name
    ran = run("prod9-train-autoencoder", "infer", case, "-o", tmp_path / "rec", "-m", model)
    assert ran.code == 0, ran.err


# -- export -----------------------------------------------------------------------------------------


def test_exports_of_both_stages_generate_alone_and_moved(workspace: Workspace, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    ran = run("prod9", "export", workspace.run1, shared / "ae", "--half", "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["bytes"]) == {"README.md", "config.json", "manifest.json", "model.safetensors"}
    ran = run("prod9", "export", workspace.run2, shared / "tf", "--autoencoder", shared / "ae")
    assert ran.code == 0, ran.err
    assert str(tmp_path) not in (shared / "tf" / "config.json").read_text()
    moved = shared.rename(tmp_path / "moved")
    ran = run(
        "prod9",
        "generate",
        "label",
        "--model",
        moved / "tf",
        "--label",
        "T2",
        "--output-dir",
        tmp_path / "out",
    )
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "T2_0000.nii.gz").is_file()


def test_an_export_never_mixes_with_other_files(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    ran = run("prod9", "export", workspace.run1, tmp_path)
    assert ran.code == 2
    assert "expected a new or an empty folder" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
