"""Commands on the pretend device: no device fault, and how often the host waits while they make volumes."""

import pytest


def generating(workspace, models):
    """By name: a command that generates, and the most that it may wait. No step of a sampler is among the waits."""
    translator, control = models.translator, models.control
    patient = sorted(workspace.cohort.iterdir())[0]
    scan, seg = (next(patient.glob(f"*-{name}.nii.gz")) for name in ("t1n", "seg"))
    of_label = ["-m", workspace.run2, "-l", "T1"]
    return {
        # For each volume its copy to the host, for each batch its labels, and once the order of the tokens.
        "label": (["generate", "label", *of_label, "-n", 2], 5),
        "control": (["generate", "control", "-m", control, "--seg", seg, "-l", "T2", "-n", 2], 8),
        "inpaint": (["generate", "inpaint", "-m", workspace.run2, "-s", f"T1={scan}", "-r", seg, "-n", 1], 5),
        "translate": (["generate", "translate", "-m", translator, "-p", patient, "-t", "FLAIR", "-n", 2], 18),
        "patients": (["generate", "patients", "-m", workspace.run2, "--in-context", translator, "--control", control,
                      "--seg", workspace.cohort, "-n", 1], 34),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["label", "control", "inpaint", "translate", "patients"])
def test_volumes_are_made_on_the_device(name, workspace, models, waits_of, tmp_path):
    args, most = generating(workspace, models)[name]
    waits = waits_of(*args, "-o", tmp_path / "made")
    assert list((tmp_path / "made").rglob("*.nii.gz"))
    assert 0 < sum(waits.values()) <= most, waits


def test_steps_of_a_sampler_wait_for_nothing(models, waits_of, tmp_path):
    label = ["generate", "label", "-m", models.label, "-l", "T1", "-n", 1]
    few, many = (
        waits_of(*label, "--set", f"sampler.steps={steps}", "-o", tmp_path / str(steps)) for steps in (2, 7)
    )
    assert few == many


def test_volumes_are_encoded_and_reconstructed_on_the_device(workspace, waits_of, tmp_path):
    scan = next(workspace.cohort.rglob("*-t1n.nii.gz"))
    waits_of("infer", scan, "-m", workspace.run1, "-o", tmp_path, command="prod9-train-autoencoder")
    waits_of("encode", "-c", workspace.stage2, "--set", f"data.store_dir={tmp_path / 'store'}")
    assert list(tmp_path.glob("*.nii.gz"))
