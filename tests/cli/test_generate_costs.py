"""What ``generate`` and ``infer`` cost before they work: each checkpoint is read once, and mistakes are cheap."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.models import checkpoint_file
from tests.harness import Workspace, later_models, run

_PROBE = """
import sys
from tests.harness import run
commands = (
    ("prod9-generate", "label", "--model", "nowhere", "-o", "out"),
    ("prod9-generate", "label", "--model", "nowhere", "-o", "out", "--example", "nothing.nii.gz"),
    ("prod9-generate", "control", "--model", "nowhere", "-o", "out", "--seg", "nothing.nii.gz"),
    ("prod9-generate", "control", "--model", "nowhere", "-o", "out", "--source", "T1=nothing.nii.gz"),
    ("prod9-generate", "translate", "--model", "nowhere", "-o", "out", "--patient", "nobody"),
    ("prod9-generate", "translate", "-m", "nowhere", "-s", "T1=a.nii", "-t", "T2", "--output", "name.png"),
    ("prod9-generate", "inpaint", "--model", "nowhere", "-o", "out", "-l", "T1", "-s", "a.nii", "-r", "b.nii"),
    ("prod9-generate", "patients", "--model", "nowhere", "--in-context", "nowhere", "-n", "1", "-o", "out"),
    ("prod9-train-autoencoder", "infer", "nothing.nii.gz", "--model", "nowhere", "-o", "out"),
)
for command in commands:
    ran = run(*command)
    assert ran.code in (1, 2), (command, ran)
    loaded = [name for name in ("torch", "monai", "lightning") if name in sys.modules]
    assert not loaded, (command, loaded)
"""


def test_a_wrong_path_is_refused_before_torch_is_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """Count how often each checkpoint file is read; a run's own copy of another file is that file."""
    counts: Counter[tuple[int, int]] = Counter()
    original = checkpoint_file.read_checkpoint

    def read_checkpoint(path: Path) -> object:
        counts[path.stat().st_dev, path.stat().st_ino] += 1
        return original(path)

    for module in list(sys.modules.values()):
        if getattr(module, "read_checkpoint", None) is original:
            monkeypatch.setattr(module, "read_checkpoint", read_checkpoint)
    return counts


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("label", 2),
        ("config", 2),
        ("control", 3),
        ("translate", 2),
        ("inpaint", 3),
        ("patients", 4),
        ("infer", 1),
    ],
)
def test_each_checkpoint_is_read_once(
    workspace: Workspace,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    reads: Counter[tuple[int, int]],
    command: str,
    files: int,
) -> None:
    translator, control = later_models(tmp_path_factory.getbasetemp())
    reads.clear()
    case = min(workspace.cohort.iterdir())
    scan, region = case / f"{case.name}-t1n.nii.gz", tmp_path / "region.nii.gz"
    drawn = np.zeros(nib.load(scan).shape, dtype=np.uint8)
    drawn[6:10, 7:11, 5:9] = 1
    nib.save(nib.Nifti1Image(drawn, nib.load(scan).affine), region)
    steered = ("--control", control, "--seg", workspace.cohort)
    arguments = {
        "label": ("label", "--model", workspace.run2),
        "config": ("label", "--config", workspace.stage2),
        "control": ("control", "--model", control, "--seg", workspace.cohort),
        "translate": ("translate", "--model", translator, "--patient", case, "--target", "T2"),
        "inpaint": (
            "inpaint", "--model", workspace.run2, "--control", control, "--healthy", "-s", scan, "-r", region,
            "--label", "T1",
        ),
        "patients": ("patients", "--model", workspace.run2, "--in-context", translator, "-n", 1, *steered),
        "infer": ("infer", case, "--model", workspace.run1),
    }[command]  # fmt: skip
    program = "prod9-train-autoencoder" if command == "infer" else "prod9-generate"
    ran = run(program, *arguments, "-o", tmp_path / "out", "--check")
    assert ran.code == 0, ran.err
    assert sorted(reads.values()) == [1] * files
