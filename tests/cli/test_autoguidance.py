"""Autoguidance and tuning from the command line: early weights, guidance, exports, the search and its result."""

import json

import pytest
import yaml

from tests.fixtures import write_brats_tree
from tests.harness import FLOW, MAISI_DATA, STAGE1, STAGE2, VAE, run

STRONG = 1000
"""A scale that shows: networks differ little after a few steps."""
SPLIT = "split: {train: 0.25, val: 0.5, test: 0.25}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight patients, four of them for validation, and both stages of MaskGiT; early weights are kept."""
    folder = tmp_path_factory.mktemp("tuned")
    write_brats_tree(folder / "cohort", 8)
    steps = [("prod9-train-autoencoder", STAGE1), ("prod9-train-transformer", STAGE2)]
    for number, (command, text) in enumerate(steps, 1):
        config = folder / f"stage{number}.yaml"
        text = text.format(folder=folder).replace("split: {train: 0.5, val: 0.25, test: 0.25}", SPLIT)
        config.write_text(text.replace("max_steps: 4", "max_steps: 4" if number == 2 else "max_steps: 2"))
        ran = run(
            command, "train", "--config", config, "--json", "--set", "callbacks.num_samples=0",
            "--set", "callbacks.checkpoint.keep_early=0.25",
        )  # fmt: skip
        assert ran.code == 0, ran.err
    return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Both stages of MAISI, likewise."""
    folder = tmp_path_factory.mktemp("tuned_flow")
    write_brats_tree(folder / "cohort", 8)
    for command, name, text in (
        ("prod9-train-maisi-vae", "vae", VAE), ("prod9-train-maisi-diffusion", "flow", FLOW)
    ):  # fmt: skip
        config = folder / f"{name}.yaml"
        text = (
            (text + MAISI_DATA)
            .format(folder=folder)
            .replace("split: {train: 0.5, val: 0.25, test: 0.25}", SPLIT)
        )
        config.write_text(text)
        ran = run(
            command, "train", "--config", config, "--json", "--set", "callbacks.num_samples=0",
            "--set", "callbacks.checkpoint.keep_early=0.5",
        )  # fmt: skip
        assert ran.code == 0, ran.err
    return folder


def generated(model, out, *options):
    ran = run("prod9", "generate", "label", "-m", model, "-l", "T1", "-n", 1, "-o", out, *options)
    return ran, (out / "T1_0000.nii.gz").read_bytes() if ran.code == 0 else b""


def test_early_weights_guide_and_are_recorded(folder, tmp_path):
    early = folder / "stage2/checkpoints/early-step=000001.ckpt"
    assert early.is_file()
    assert early.stat().st_size < (folder / "stage2/checkpoints/last.ckpt").stat().st_size
    _, plain = generated(folder / "stage2", tmp_path / "plain")
    ran, off = generated(folder / "stage2", tmp_path / "off", "--autoguidance", 0, "--weak-model", "nowhere")
    assert ran.code == 0, ran.err
    assert off == plain, "scale 0 loads nothing and changes nothing"
    ran, _ = generated(folder / "stage2", tmp_path / "unused", "--weak-model", "nowhere")
    assert ran.code == 2
    assert "--weak-model: expected --autoguidance SCALE with it, got nowhere" in ran.err
    assert not (tmp_path / "unused").exists()
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "off")]
    assert manifests[0]["settings"] == manifests[1]["settings"]
    assert "weak" not in manifests[0]["settings"]["sha256"]
    ran, guided = generated(folder / "stage2", tmp_path / "on", "--autoguidance", STRONG)
    assert ran.code == 0, ran.err
    assert guided != plain
    settings = json.loads((tmp_path / "on/manifest.json").read_text())["settings"]
    assert settings["sampler"]["autoguidance_scale"] == STRONG
    digest = (early.parent / f"{early.name}.sha256").read_text().split()[0]
    assert settings["sha256"]["weak"] == digest


def test_an_export_takes_the_weak_model_along(folder, tmp_path):
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    assert run("prod9", "export", folder / "stage2", alone).code == 0
    ran, _ = generated(alone, tmp_path / "refused", "--autoguidance", 1)
    assert ran.code == 1
    assert "export the run again with --weak-model auto" in ran.err
    ran = run("prod9", "export", folder / "stage2", whole, "--weak-model", "auto")
    assert ran.code == 0, ran.err
    ran, guided = generated(whole, tmp_path / "exported", "--autoguidance", STRONG)
    assert ran.code == 0, ran.err
    _, wanted = generated(folder / "stage2", tmp_path / "run", "--autoguidance", STRONG)
    assert guided == wanted
    ran = run("prod9", "export", folder / "stage1", tmp_path / "no", "--weak-model", "auto")
    assert ran.code == 1
    assert "expected a stage 2 to take a weak model along, got stage autoencoder" in ran.err
    assert not list((tmp_path / "no").glob("*"))


def test_a_fine_tuned_run_keeps_no_early_weights(folder, tmp_path):
    ran = run(
        "prod9-train-transformer", "train", "--config", folder / "stage2.yaml", "--init-from", folder / "stage2",
        "--output-dir", tmp_path / "tuned", "--set", f"data.store_dir={folder}/stage2/store", "--set",
        "callbacks.checkpoint.keep_early=0.25", "--set", "callbacks.num_samples=0", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert not list((tmp_path / "tuned/checkpoints").glob("early-*"))


def test_a_flow_is_guided_by_its_early_weights(flow, tmp_path):
    _, plain = generated(flow / "flow", tmp_path / "plain", "--steps", 2)
    ran, guided = generated(flow / "flow", tmp_path / "on", "--steps", 2, "--autoguidance", STRONG)
    assert ran.code == 0, ran.err
    assert guided != plain


def test_a_file_gives_the_sampler_and_options_win(folder, tmp_path):
    file = tmp_path / "sampler.yaml"
    file.write_text("sampler: {steps: 2, temperature: 0.7}\n")
    ran = run(
        "prod9", "generate", "label", "-m", folder / "stage2", "-o", "unused", "--print-config",
        "--sampler", file, "--steps", 5,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    section = yaml.safe_load(ran.out)["sampler"]
    assert (section["steps"], section["temperature"]) == (5, 0.7)
    for text, wanted in (
        ("training: {max_steps: 2}\n", "expected a `sampler` section and nothing else, got training"),
        ("sampler: {stepz: 2}\n", "sampler.stepz"),
    ):
        file.write_text(text)
        ran = run("prod9", "generate", "label", "-m", folder / "stage2", "-o", "unused", "--sampler", file)
        assert ran.code == 2
        assert wanted in ran.err


@pytest.mark.parametrize("family", ["maskgit", "maisi"])
def test_a_search_writes_the_knee_and_goes_on_where_it_stopped(family, request, tmp_path):
    base = request.getfixturevalue("folder" if family == "maskgit" else "flow")
    model = base / ("stage2" if family == "maskgit" else "flow")
    out, budget = tmp_path / "out", 3300 if family == "maskgit" else 2000
    arguments = [
        "prod9",
        "tune",
        "sampler",
        model,
        "-o",
        out,
        "--num-samples",
        4,
        "--budget",
        budget,
        "--json",
    ]
    ran = run(*arguments)
    assert ran.code == 0, ran.err
    found = ran.json
    validation = json.loads((model / "split.json").read_text())["val"]
    assert found["patients"] == sorted(validation)
    assert found["knee"] in found["front"]
    kept = json.loads((out / "search.json").read_text())
    assert kept["result"]["knee"] == found["knee"]
    assert all("autoguidance_scale" in trial["sampler"] for trial in kept["trials"])
    knee = found["trials"][found["knee"]]
    section = yaml.safe_load((out / "sampler.yaml").read_text())["sampler"]
    assert section["steps"] == knee["sampler"]["steps"]
    assert (out / "search.png").stat().st_size > 1000
    ran, volume = generated(model, tmp_path / "drawn", "--sampler", out / "sampler.yaml")
    assert ran.code == 0, ran.err
    assert volume
    # An interrupted search has some trials and no result.
    kept |= {"result": None, "trials": kept["trials"][:-1]}
    (out / "search.json").write_text(json.dumps(kept))
    again = run(*arguments)
    assert again.code == 0, again.err

    def lasting(trials):
        return [{k: v for k, v in trial.items() if k != "seconds"} for trial in trials]

    assert lasting(again.json["trials"]) == lasting(found["trials"])
    other = run(*arguments, "--seed", 1)
    assert other.code == 2
    assert "--overwrite" in other.err


def test_what_cannot_be_tuned_is_refused_by_name(folder, workspace, tmp_path):
    for model, options, code, wanted in (
        (folder / "stage1", (), 1, "got stage autoencoder"),
        (workspace.run2, (), 2, "expected at least 4 validation patients"),
        (folder / "stage2", ("--data", tmp_path / "nowhere"), 2, "name it with --data"),
        (folder / "stage2", ("--budget", "much"), 2, "--budget: expected a number of evaluations"),
        (folder / "stage2", ("--budget", 10), 2, "--budget: expected at least"),
        (folder / "stage2", ("--weak-model", folder / "stage1"), 1, "got stage autoencoder"),
    ):
        ran = run("prod9", "tune", "sampler", model, "-o", tmp_path / "out", *options)
        assert (ran.code, wanted in ran.err) == (code, True), ran.err
        assert not (tmp_path / "out/sampler.yaml").exists()
