"""The MAISI family through its commands: from files to generated files, and back from mistakes."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch

from prod9.models.released import RELEASED
from prod9.models.released_weights import build_released
from prod9.volumes import read
from tests.harness import flow_models, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of a cohort with both stages trained for two steps."""
    base = flow_models(tmp_path_factory.getbasetemp())
    return Path(copytree(base, tmp_path_factory.mktemp("maisi"), dirs_exist_ok=True))


@pytest.mark.parametrize(("command", "name"), [("maisi-vae", "vae"), ("maisi-diffusion", "flow")])
def test_a_check_counts_the_parameters(folder, tmp_path, command, name):
    checked = run(
        f"prod9-train-{command}", "train", "--config", folder / f"{name}.yaml", "--check", "--json", "--output-dir",
        tmp_path / "run",
    )  # fmt: skip
    assert checked.code == 0, checked.err
    assert checked.json["parameters"] > 1000


def test_both_stages_are_measured_on_held_out_patients(folder):
    vae = run("prod9-train-maisi-vae", "test", "--model", folder / "vae", "--json")
    assert vae.code == 0, vae.err
    assert {"test/psnr", "test/kl"} <= set(vae.json["metrics"])
    flow = run("prod9-train-maisi-diffusion", "validate", "--config", folder / "flow.yaml", "--json")
    assert flow.code == 0, flow.err
    assert flow.json["metrics"]["val/loss"] > 0


def test_a_flow_learns_from_a_table_and_is_asked_for_values(folder, tmp_path):
    """From the weights of a flow without covariates on, and with values that each volume draws."""
    cases = sorted(path.name for path in (folder / "cohort").iterdir())
    rows = [f"{case},{30 + 5 * k},{'FM'[k % 2]}" for k, case in enumerate(cases)]
    (tmp_path / "table.csv").write_text("\n".join(["case,age,sex", *rows]) + "\n")
    about = "numbers: {age: [20, 80]}, categories: {sex: [F, M]}"
    covariates = f"covariates={{file: {tmp_path / 'table.csv'}, {about}}}"
    ran = run(
        "prod9-train-maisi-diffusion", "train", "--config", folder / "flow.yaml", "--output-dir", tmp_path / "flow",
        "--init-from", folder / "flow", "--json", "--set", covariates, "--set", "model.covariates=[2, 2]",
        "--set", "loss.covariate_dropout=0.5",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run(
        "prod9", "generate", "label", "-m", tmp_path / "flow", "-l", "T1", "-n", 2, "-o", tmp_path / "made",
        "--set-covariate", "age=30:70", "--set-covariate", "sex=F",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    noted = json.loads((tmp_path / "made" / "manifest.json").read_text())["files"]
    assert all(30 <= entry["covariates"]["age"] <= 70 for entry in noted.values())


def test_infer_writes_volumes_and_latents(folder):
    case = next((folder / "cohort").iterdir())
    out = folder / "inferred"
    strategy = "sliding_window.strategy=exact"
    ran = run(
        "prod9-train-maisi-vae", "infer", case, "--model", folder / "vae", "-o", out,
        "--save-latents", "--set", strategy, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(ran.json["made"]) == 4
    source, result = next(case.glob("*t1n*")), next(out.glob("*t1n.nii.gz"))
    assert read(source).header.shape == read(result).header.shape
    latent = np.load(next(out.glob("*t1n_latent.npz")))
    assert latent["latent"].shape[0] == 2
    assert set(latent.files) == {"latent", "affine", "downsampling_factor"}


@pytest.mark.parametrize(
    "command", [("prod9-generate", "label"), ("prod9-train-maisi-diffusion", "generate")]
)
def test_generate_takes_the_flow(folder, command):
    out = folder / command[0]
    ran = run(
        *command,
        "--model",
        folder / "flow",
        "-o",
        out,
        "--label",
        "T2",
        "-n",
        2,
        "--solver",
        "heun",
        "--json",
    )
    assert ran.code == 0, ran.err
    assert ran.json["made"] == ["T2_0000.nii.gz", "T2_0001.nii.gz"]
    first = read(out / "T2_0000.nii.gz")
    assert first.header.shape == (16, 16, 16)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["flow"]["num_train_timesteps"] == 1000
    again = run(
        *command,
        "--model",
        folder / "flow",
        "-o",
        out,
        "--label",
        "T2",
        "-n",
        2,
        "--solver",
        "heun",
        "--json",
    )
    assert again.json == {"output_dir": str(out), "made": [], "kept": 2}


def test_mistakes_are_named(folder, tmp_path):
    wrong = run("prod9-generate", "label", "--model", folder / "vae", "-o", tmp_path)
    assert wrong.code == 1
    assert "stage maisi_vae" in wrong.err
    option = run("prod9-generate", "label", "--model", folder / "flow", "-o", tmp_path, "--order", "halton")
    assert option.code == 2
    assert "sampler.order" in option.err
    grid = run(
        "prod9-train-maisi-diffusion", "train", "--config", folder / "flow.yaml", "--check",
        "--set", "data.grid=[20, 16, 16]",
    )  # fmt: skip
    assert grid.code == 2
    assert "expected multiples of 8" in grid.err
    assert "the U-Net's 2" in grid.err
    label = run(
        "prod9-train-maisi-diffusion", "train", "--config", folder / "flow.yaml",
        "--set", "data.label_map={T1: 0, T1ce: 1, T2: 2, FLAIR: 3}",
    )  # fmt: skip
    assert label.code == 2
    assert "0 means unknown" in label.err


def test_a_flow_is_distilled_and_generates_in_one_step(folder, tmp_path):
    config = folder / "student.yaml"
    config.write_text(
        f"extends: {folder}/flow.yaml\noutput_dir: {folder}/student\nmodel: {{num_step_sizes: 2}}\n"
        "distillation: {kind: shortcut}\nloss: {condition_dropout: 0.0}\nsampler: {steps: 2}\n"
    )
    train = ("prod9-train-maisi-diffusion", "train", "--config", config)
    start = ("--init-from", folder / "flow")
    for options in ((), ("--check",)):
        alone = run(*train, *options)
        assert alone.code == 2
        assert "distillation: expected a teacher" in alone.err
    assert run(*train, *start, "--check").code == 0
    ran = run(*train, *start, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["val/loss_in_1"] > 0
    generate = ("prod9-generate", "label", "--model", folder / "student", "--label", "T2", "-n", 1)
    made = run(*generate, "-o", tmp_path / "made", "--steps", 1, "--json")
    assert made.code == 0, made.err
    settings = json.loads((tmp_path / "made" / "manifest.json").read_text())["settings"]
    assert settings["sampler"]["steps"] == 1
    assert settings["distillation"]["kind"] == "shortcut"
    for option, value, message in (
        ("--steps", 8, "sampler.steps: expected 1 or 2"),
        ("--guidance-scale", 1.5, "sampler.guidance_scale: expected 0"),
    ):
        refused = run(*generate, "-o", tmp_path / "refused", option, value)
        assert refused.code == 2
        assert message in refused.err
        assert not (tmp_path / "refused").exists()


def test_weights_are_listed_and_what_is_no_weight_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PROD9_WEIGHTS_DIR", str(tmp_path))
    listed = run("prod9", "weights", "list", "--json")
    names = {row["name"]: row for row in listed.json}
    assert set(RELEASED) <= set(names)
    assert names["rflow-mr"]["file"] == "diff_unet_3d_rflow-mr.pt"
    assert names["alex"]["licence"]
    entry = RELEASED["autoencoder_v1"]
    torch.save({k: torch.zeros(1) for k in build_released(entry).state_dict()}, tmp_path / entry.file)
    ran = run("prod9", "weights", "verify", "--json")
    assert ran.code == 1
    assert "has shape (1,)" in ran.err
    strange = run("prod9", "weights", "import", tmp_path / "model.pt")
    assert strange.code == 2
    assert "--name" in strange.err
