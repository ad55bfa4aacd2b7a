"""A command reads and hashes each checkpoint once."""

from collections import Counter
from pathlib import Path

import pytest

from prod9.models import checkpoint_file, checkpoint_opening
from tests.harness import run


@pytest.fixture
def reads(monkeypatch):
    """Count how often each checkpoint is read, and how often hashed."""
    counts: Counter[tuple[str, str]] = Counter()
    read, digest = checkpoint_file.read_checkpoint, checkpoint_file.sha256

    def counted_read(path):
        counts["read", str(Path(path).resolve())] += 1
        return read(path)

    def counted_digest(path):
        if str(path).endswith(".ckpt"):
            counts["hash", str(Path(path).resolve())] += 1
        return digest(path)

    monkeypatch.setattr(checkpoint_opening, "read_checkpoint", counted_read)
    monkeypatch.setattr(checkpoint_file, "sha256", counted_digest)
    return counts


def once(counts, number):
    assert set(counts.values()) == {1}, counts
    assert len({path for _, path in counts}) == number


@pytest.fixture
def case(workspace):
    return sorted(workspace.cohort.iterdir())[0]


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_c_label_opens_each_checkpoint_once(models, reads, tmp_path, check):
    ran = run("prod9", "generate", "label", "-m", models.label, "--label", "T1", "-o", tmp_path, *check)
    assert ran.code == 0, ran.err
    once(reads, 2)


def test_c_control_opens_each_checkpoint_once(models, case, reads, tmp_path):
    seg = case / f"{case.name}-seg.nii.gz"
    ran = run(
        "prod9", "generate", "control", "-m", models.control, "--label", "T1", "--seg", seg, "-o", tmp_path
    )
    assert ran.code == 0, ran.err
    once(reads, 3)


def test_c_translate_opens_each_checkpoint_once(models, case, reads, tmp_path):
    source = f"T1={case / f'{case.name}-t1n.nii.gz'}"
    ran = run(
        "prod9", "generate", "translate", "-m", models.translator, "-s", source, "-t", "T2",
        "--output", tmp_path / "made.nii.gz",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    once(reads, 2)


def test_c_infer_opens_its_checkpoint_once(models, case, reads, tmp_path):
    scan = case / f"{case.name}-t1n.nii.gz"
    ran = run("prod9-train-autoencoder", "infer", scan, "-m", models.stage1, "-o", tmp_path)
    assert ran.code == 0, ran.err
    once(reads, 1)


def test_c_patients_open_each_checkpoint_once(models, case, reads, tmp_path):
    seg = case / f"{case.name}-seg.nii.gz"
    ran = run(
        "prod9", "generate", "patients", "-n", 1, "-m", models.label, "--in-context", models.translator,
        "--control", models.control, "--seg", seg, "-o", tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    once(reads, 4)


@pytest.mark.parametrize("control", [False, True])
def test_c_inpaint_opens_each_checkpoint_once(models, case, reads, tmp_path, control):
    scan, seg = case / f"{case.name}-t1n.nii.gz", case / f"{case.name}-seg.nii.gz"
    steer = ("--control", models.control, "--seg", seg) if control else ()
    ran = run(
        "prod9", "generate", "inpaint", "-m", models.label, "--label", "T1", "-s", scan, "-r", seg,
        "-o", tmp_path, *steer,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    once(reads, 3 if control else 2)


def test_c_validate_opens_each_checkpoint_once(models, reads):
    ran = run("prod9-train-transformer", "validate", "-m", models.label)
    assert ran.code == 0, ran.err
    once(reads, 2)


def test_c_train_opens_its_base_once(workspace, reads, tmp_path):
    ran = run(
        "prod9-train-transformer", "train", "--config", workspace.stage2, "--output-dir", tmp_path / "run",
        "--set", "training.max_steps=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert reads_of(workspace.run1, reads) == [1]


def test_c_train_of_control_opens_each_base_once(workspace, models, reads, tmp_path):
    config = workspace.folder / "prod9-train-maskgit-controlnet.yaml"
    ran = run(
        "prod9-train-maskgit-controlnet", "train", "--config", config, "--output-dir", tmp_path / "run",
        "--set", "training.max_steps=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert reads_of(workspace.run1, reads) == [1]
    assert reads_of(workspace.run2, reads) == [1]


def test_c_check_opens_each_base_once(workspace, models, reads, tmp_path):
    config = workspace.folder / "prod9-train-maskgit-controlnet.yaml"
    ran = run(
        "prod9-train-maskgit-controlnet",
        "train",
        "--config",
        config,
        "--output-dir",
        tmp_path / "run",
        "--check",
    )
    assert ran.code == 0, ran.err
    assert reads_of(workspace.run1, reads) == [1]
    assert reads_of(workspace.run2, reads) == [1]


def test_c_encode_opens_the_autoencoder_once(workspace, reads, tmp_path):
    ran = run("prod9", "encode", "--config", workspace.stage2, "--output-dir", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert reads_of(workspace.run1, reads) == [1]


def test_c_validate_of_control_opens_each_checkpoint_once(models, reads):
    ran = run("prod9-train-maskgit-controlnet", "validate", "-m", models.control)
    assert ran.code == 0, ran.err
    once(reads, 3)


def reads_of(folder, counts):
    """Return how often each checkpoint below the run ``folder`` was read."""
    checkpoints = folder.resolve() / "checkpoints"
    return [n for (what, path), n in counts.items() if what == "read" and Path(path).parent == checkpoints]
