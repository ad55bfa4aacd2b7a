"""Detail flows through the commands: trained, found, asked for noise and steps, recorded, exported and refused."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from prod9.volumes import read
from tests.harness import MAISI_DATA, Ran, Workspace, flow_models, later_models, run

COMMON = """
output_dir: unused
data:
  root: {cohort}
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
sampler: {{steps: 2, max_steps: 3}}
training: {{max_steps: 3, validate_every_steps: 3, learning_rate: 1e-2, lr_schedule: {{warmup_steps: 0}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""
RECONSTRUCTIONS = (
    COMMON + "stage: detail\ninputs: {{autoencoder: {folder}/stage1}}\n"
    "model: {{num_channels: [8, 8], detail_channels: 4}}\n"
)
TRANSLATIONS = (
    COMMON + "stage: translation_detail\ninputs: {{transformer: {folder}/translator}}\n"
    "model: {{kind: translation_detail, num_channels: [8, 8], detail_channels: 4}}\n"
)
MAISI = (
    "stage: maisi_detail\noutput_dir: {folder}/flow_detail\ninputs: {{autoencoder: {folder}/vae}}\n"
    "model: {{num_classes: 5, num_channels: [8, 8], detail_channels: 4}}\n" + MAISI_DATA
)


def train(command: str, config: Path, text: str, output: Path) -> None:
    config.write_text(text, encoding="utf-8")
    ran = run(command, "train", "--config", config, "--output-dir", output, "--json")
    assert ran.code == 0, ran.err


@pytest.fixture(scope="module")
def models(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with their detail flows beside them: ``label``, ``translator``."""
    folder = tmp_path_factory.mktemp("detail")
    copytree(workspace.run2, folder / "label")
    given = {"folder": workspace.folder, "cohort": workspace.cohort}
    train(
        "prod9-train-transformer", folder / "d.yaml", RECONSTRUCTIONS.format(**given), folder / "label_detail"
    )
    copytree(later_models(tmp_path_factory.getbasetemp())[0], folder / "translator")
    given["folder"] = folder
    text = TRANSLATIONS.format(**given)
    train("prod9-train-transformer", folder / "td.yaml", text, folder / "translator_detail")
    return folder


def label(models: Path, out: Path, *args: object) -> Ran:
    return run(
        "prod9", "generate", "label", "--model", models / "label", "--label", "T1", "-o", out, "--json", *args
    )


def settings(out: Path) -> dict[str, object]:
    return json.loads((out / "manifest.json").read_text())["settings"]


def test_what_lies_beside_is_used_recorded_and_left_out_on_demand(models: Path, tmp_path: Path) -> None:
    for name, args in (
        ("on", []), ("clean", ["--noise", "0", "--detail-steps", 3]), ("off", ["--no-detail"]),
        ("named", ["--detail", models / "label_detail"]),
    ):  # fmt: skip
        ran = label(models, tmp_path / name, *args)
        assert ran.code == 0, ran.err
    made = {name: read(tmp_path / name / "T1_0000.nii.gz").data for name in ("on", "clean", "off", "named")}
    assert not np.array_equal(made["on"], made["off"])
    assert not np.array_equal(made["on"], made["clean"])
    np.testing.assert_array_equal(made["on"], made["named"])
    assert settings(tmp_path / "on")["detail"] == {"steps": 2, "noise": "scans"}
    assert settings(tmp_path / "clean")["detail"] == {"steps": 3, "noise": 0.0}
    assert "detail" in settings(tmp_path / "on")["sha256"]  # type: ignore[operator]
    off = settings(tmp_path / "off")
    assert "detail" not in off
    assert "detail" not in off["sha256"]  # type: ignore[operator]
    # Noise and steps decide the content: a folder holds volumes of one choice.
    ran = label(models, tmp_path / "on", "--noise", "0.01")
    assert ran.code != 0
    checked = label(models, tmp_path / "x", "--check", "--noise", "0.01")
    assert checked.json["detail"] == {"steps": 2, "noise": 0.01}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--detail-steps", 9], "detail-steps: expected 1 to 3"),
        (["--noise", "loud"], "--noise: expected a level such as 0.02, 0 for none, or scans, got 'loud'"),
        (["--noise", "7"], "noise: expected 0 to"),
        (["--no-detail", "--noise", "0"], "expected --no-detail or --noise, got both"),
        (["--no-detail", "--detail-steps", 2], "expected --no-detail or --detail-steps, got both"),
        (["--detail", "nowhere"], "nowhere: expected a run folder"),
        (["--detail", "{models}/translator_detail"], "stage detail, got stage translation_detail"),
        (["--detail", "{models}/label"], "expected a checkpoint of stage detail, got stage transformer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
    models: Path, tmp_path: Path, args: list[object], expected: str
) -> None:
    given = [str(arg).format(models=models) for arg in args]
    ran = label(models, tmp_path / "out", *given)
    assert ran.code in (1, 2)
    assert expected in ran.err
    assert not (tmp_path / "out").exists()


def test_steps_without_a_detail_flow_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    ran = run(
        "prod9", "generate", "label", "--model", workspace.run2, "-o", tmp_path / "out", "--detail-steps", 2
    )
    assert ran.code == 2
    assert "expected a detail flow to ask for steps, got none beside the model" in ran.err


def test_translations_are_sharp_and_the_mean_is_what_it_was(
    workspace: Workspace, models: Path, tmp_path: Path
) -> None:
    case = sorted(workspace.cohort.iterdir())[0]

    def translate(name: str, *args: object) -> np.ndarray:
        ran = run(
            "prod9", "generate", "translate", "--model", models / "translator", "--patient", case,
            "--target", "FLAIR", "-o", tmp_path / name, "--json", *args,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return read(tmp_path / name / ran.json["made"][0]).data

    sharp, soft = translate("sharp"), translate("soft", "--no-detail")
    assert not np.array_equal(sharp, soft)
    assert not np.array_equal(translate("clean", "--noise", "0"), sharp)
    mean = translate("mean", "--decode", "mean")
    np.testing.assert_array_equal(mean, translate("plain", "--decode", "mean", "--no-detail"))
    assert settings(tmp_path / "sharp")["detail"] == {"steps": 2, "noise": "scans"}


def test_exports_lie_beside_each_other_as_runs_do(models: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for args in (
        [models / "label_detail", whole],
        [models / "label", tmp_path / "label"],
        [models / "label_detail", tmp_path / "label_detail", "--autoencoder", tmp_path / "label" / "autoencoder"],
    ):  # fmt: skip
        ran = run("prod9", "export", *args)
        assert ran.code == 0, ran.err
    assert (whole / "autoencoder" / "model.safetensors").is_file()
    exported = ["--model", tmp_path / "label", "--label", "T1", "-o", tmp_path / "out", "--json"]
    ran = run("prod9", "generate", "label", *exported)
    assert ran.code == 0, ran.err
    assert settings(tmp_path / "out")["detail"] == {"steps": 2, "noise": "scans"}
    beside = label(models, tmp_path / "beside")
    assert beside.code == 0
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "T1_0000.nii.gz").data, read(tmp_path / "beside" / "T1_0000.nii.gz").data
    )


def test_maisi_volumes_are_sharpened_alike(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copytree(flow_models(tmp_path_factory.getbasetemp()), tmp_path, dirs_exist_ok=True)
    config, text = tmp_path / "flow_detail.yaml", MAISI.format(folder=tmp_path)
    train("prod9-train-maisi-diffusion", config, text, tmp_path / "flow_detail")
    made = {}
    for name, args in (("on", []), ("off", ["--no-detail"])):
        ran = run(
            "prod9", "generate", "label", "--model", tmp_path / "flow", "--label", "T1", "-o", tmp_path / name,
            "--json", *args,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        made[name] = read(tmp_path / name / "T1_0000.nii.gz").data
    assert not np.array_equal(made["on"], made["off"])
    assert "detail" in settings(tmp_path / "on")
