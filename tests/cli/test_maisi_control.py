"""Stage 3 of MAISI through its command: from files to generated files, and back from mistakes."""

import json
from shutil import copytree

import numpy as np
import pytest
import torch

from prod9.models.checkpoint_file import read_checkpoint, write_checkpoint
from prod9.volumes import read, write
from tests.harness import MAISI_DATA, flow_models, run

CONTROL = """
stage: maisi_controlnet
output_dir: {folder}/control
inputs: {{diffusion: {folder}/flow}}
model: {{channels: [4, 6]}}
condition: {{conditions: [mask, image], source_modalities: [T1, T2]}}
sampler: {{steps: 2}}
validation: {{num_volumes: 2}}
"""
COMMAND = "prod9-train-maisi-controlnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cohort with all three stages trained for two steps."""
    folder = tmp_path_factory.mktemp("maisi_control")
    copytree(flow_models(tmp_path_factory.getbasetemp()), folder, dirs_exist_ok=True)
    (folder / "control.yaml").write_text((CONTROL + MAISI_DATA).format(folder=folder))
    checked = run(COMMAND, "train", "--config", folder / "control.yaml", "--check", "--json")
    assert checked.code == 0, checked.err
    assert checked.json["parameters"] > 1000
    ran = run(COMMAND, "train", "--config", folder / "control.yaml", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 2
    return folder


@pytest.fixture
def case(folder):
    """The files of one patient."""
    return {
        path.name.split("-")[-1].removesuffix(".nii.gz"): path
        for path in (folder / "cohort").rglob("*0000-*")
    }


def test_it_is_measured_on_held_out_patients(folder):
    ran = run(COMMAND, "test", "--model", folder / "control", "--json")
    assert ran.code == 0, ran.err
    assert {"test/loss", "test/loss_base"} <= set(ran.json["metrics"])


@pytest.mark.parametrize("command", [("prod9", "generate", "control"), (COMMAND, "generate")])
def test_generate_follows_files(folder, case, command):
    out = folder / command[0]
    arguments = (
        *command, "--model", folder / "control", "-o", out, "--seg", case["seg"], "--source", f"T1={case['t1n']}",
        "--source", f"T2={case['t2w']}", "--label", "FLAIR", "-n", 2, "--solver", "heun", "--json",
    )  # fmt: skip
    ran = run(*arguments)
    assert ran.code == 0, ran.err
    name = case["seg"].name.removesuffix("-seg.nii.gz")
    assert ran.json["made"] == [f"{name}_FLAIR_0000.nii.gz", f"{name}_FLAIR_0001.nii.gz"]
    volume, seg = read(out / f"{name}_FLAIR_0000.nii.gz"), read(out / f"{name}_seg.nii.gz")
    assert volume.header.shape == (16, 16, 16)
    np.testing.assert_allclose(volume.header.affine, seg.header.affine)
    assert set(json.loads((out / "manifest.json").read_text())["settings"]["segmentations"]) == {
        name,
        "T1",
        "T2",
    }
    assert run(*arguments).json["kept"] == 2


def test_a_resumed_command_goes_on(folder):
    more = ("--set", "training.max_steps=3", "--json")
    ran = run(COMMAND, "train", "--config", folder / "control.yaml", "--resume", "auto", *more)
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 3


def test_mistakes_are_named(folder, case, tmp_path):
    model = ("--model", folder / "control", "-o", tmp_path / "out")
    shown = ("--source", f"T1={case['t1n']}")

    def refused(text, *arguments, code=2):
        ran = run("prod9", "generate", "control", *model, *arguments)
        assert ran.code == code, ran.err
        assert text in ran.err

    refused("got none; pass --source NAME=FILE", "--seg", case["seg"])
    refused("got none; pass --seg", *shown)
    refused(
        "expected T1, T2 for this model, got FLAIR", "--seg", case["seg"], "--source", f"FLAIR={case['t2f']}"
    )
    refused("expected NAME=FILE", "--seg", case["seg"], "--source", str(case["t1n"]))
    refused("expected one of T1, T1ce, T2, FLAIR, got 'PD'", "--seg", case["seg"], *shown, "--label", "PD")
    seg = read(case["seg"])
    strange, small = tmp_path / "a-seg.nii.gz", tmp_path / "b-seg.nii.gz"
    write(strange, np.full_like(seg.data, 9), seg.header.affine, dtype="uint8")
    refused("9", "--seg", strange, *shown, code=1)
    write(small, seg.data[:8], seg.header.affine, dtype="uint8")
    refused("expected the voxel grid of", "--seg", small, *shown, code=1)


def test_a_base_that_does_not_fit_is_refused_before_training(folder, tmp_path):
    def refused(text, *changes):
        ran = run(
            COMMAND, "train", "--config", folder / "control.yaml", "--output-dir", tmp_path / "x", *changes
        )
        assert ran.code != 0
        assert text in ran.err
        assert not (tmp_path / "x").exists()

    refused("stage maisi_vae", "--set", f"inputs.diffusion={folder / 'vae'}")
    refused("does not exist", "--set", f"inputs.diffusion={folder / 'nothing'}")
    refused("data.label_map: expected that of", "--set", "data.label_map={T1: 2, T1ce: 1, T2: 3, FLAIR: 4}")
    refused("expected 3 widths", "--set", "model.encoder=maisi", "--set", "model.channels=[4]")
    content, _ = read_checkpoint(next((folder / "flow" / "checkpoints").glob("last.ckpt")))
    content["prod9"]["data"]["schedule"] = "ddpm"
    write_checkpoint(content, tmp_path / "ddpm.ckpt")
    refused(
        "schedule rectified_flow, got one trained with ddpm",
        "--set",
        f"inputs.diffusion={tmp_path / 'ddpm.ckpt'}",
    )
    assert torch.is_tensor(next(iter(content["state_dict"].values())))
