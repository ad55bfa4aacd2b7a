"""Commands on the pretend device: no device fault, and how often the host waits while they make and score volumes."""

from collections import Counter

import pytest
import torch

from tests.cli.test_evaluate import write_patients
from tests.harness import later_models, run, trained
from tests.pretend import pretend_cuda


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Trained runs of tiny models: what trained them, the translator and the control network."""
    base = tmp_path_factory.getbasetemp()
    space = trained(base)
    return space, *later_models(base)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    return [write_patients(folder / name, 6, first=first) for name, first in (("real", 0), ("made", 20))]


@pytest.fixture
def waits_of(monkeypatch):
    """Run a command on the pretend device, which has to succeed, and return what it waited for."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def call(*args, command="prod9"):
        with pretend_cuda() as device, device.counted() as waits:
            ran = run(command, *args, "--device", "cuda:0")
            found = Counter(waits)
        assert ran.code == 0, ran.err
        return found

    return call


def generating(models, folder):
    """By name: a command that generates, and the most that it may wait. No step of a sampler is among the waits."""
    space, translator, control = models
    patient = sorted(space.cohort.iterdir())[0]
    scan, seg = (next(patient.glob(f"*-{name}.nii.gz")) for name in ("t1n", "seg"))
    of_label = ["-m", space.run2, "-l", "T1"]
    return {
        # For each volume its copy to the host, for each batch its labels, and once the order of the tokens.
        "label": (["generate", "label", *of_label, "-n", 2], 5),
        "control": (["generate", "control", "-m", control, "--seg", seg, "-l", "T2", "-n", 2], 8),
        "inpaint": (["generate", "inpaint", "-m", space.run2, "-s", f"T1={scan}", "-r", seg, "-n", 1], 40),
        "translate": (["generate", "translate", "-m", translator, "-p", patient, "-t", "FLAIR", "-n", 2], 40),
        "patients": (["generate", "patients", "-m", space.run2, "--in-context", translator, "--control", control,
                      "--seg", space.cohort, "-n", 1], 34),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["label", "control", "inpaint", "translate", "patients"])
def test_volumes_are_made_on_the_device(name, models, waits_of, tmp_path):
    args, most = generating(models, tmp_path)[name]
    waits = waits_of(*args, "-o", tmp_path / "made")
    assert list((tmp_path / "made").rglob("*.nii.gz"))
    print(name, sum(waits.values()), dict(waits))
    assert 0 < sum(waits.values()) <= most, waits


def test_steps_of_a_sampler_wait_for_nothing(models, waits_of, tmp_path):
    label = ["generate", "label", "-m", models[0].run2, "-l", "T1", "-n", 1]
    few, many = (
        waits_of(*label, "--set", f"sampler.steps={steps}", "-o", tmp_path / str(steps)) for steps in (2, 7)
    )
    assert few == many


def test_volumes_are_encoded_and_reconstructed_on_the_device(models, waits_of, tmp_path):
    space = models[0]
    scan = next(space.cohort.rglob("*-t1n.nii.gz"))
    waits_of("infer", scan, "-m", space.run1, "-o", tmp_path, command="prod9-train-autoencoder")
    waits_of("encode", "-c", space.stage2, "--set", f"data.store_dir={tmp_path / 'store'}")
    assert list(tmp_path.glob("*.nii.gz"))


SCORES = {
    "images": (["evaluate", "images"], 400),
    "patients": (["evaluate", "patients"], 400),
    "utility": (["evaluate", "utility", "--steps", 2, "--seeds", 1], 400),
    "audit": (["audit", "--max-share", 1], 400),
}


@pytest.mark.parametrize("name", SCORES)
def test_volumes_are_scored_on_the_device(name, cohorts, waits_of, tmp_path):
    args, most = SCORES[name]
    real, made = cohorts
    given = [real, made]
    if name == "audit":
        given = ["--train", real, "--heldout", real, "--generated", made]
    waits = waits_of(*args, *given, "-o", tmp_path)
    print(name, sum(waits.values()), dict(waits))
    assert sum(waits.values()) <= most, waits


def test_samples_and_control_are_scored_on_the_device(models, waits_of, tmp_path):
    space, translator, control = models
    for command, part, how in (
        ("translate", "samples", ["-m", translator, "-p", space.cohort, "-t", "FLAIR", "-n", 2]),
        ("control", "control", ["-m", control, "--seg", space.cohort, "-l", "T2", "-n", 1]),
    ):
        made = tmp_path / command
        ran = run("prod9", "generate", command, *how, "-o", made, "--device", "cpu")
        assert ran.code == 0, ran.err
        waits_of("evaluate", part, space.cohort, made, "-o", tmp_path / part)
