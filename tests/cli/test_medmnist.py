"""MedMNIST3D from its file to generated volumes, through the commands."""

from pathlib import Path

import nibabel as nib
import pytest

from tests.fixtures import write_medmnist3d
from tests.harness import STAGE1, STAGE2, run

DATA = """  kind: medmnist3d
  root: {folder}/medmnist
  grid: [32, 32, 32]
  store_flips: false
  augment: {{flip_prob: 0.0}}
"""


def configs(folder: Path) -> tuple[Path, Path]:
    """Write both configs over a small file."""
    write_medmnist3d(folder / "medmnist")
    paths = []
    for text in (STAGE1, STAGE2):
        head, _, tail = text.partition("data:\n")
        rest = tail[tail.index("  batch_size") :].replace(
            "label_conditional,", "label_conditional, num_classes: 11,"
        )
        path = folder / f"config{len(paths)}.yaml"
        path.write_text((head + "data:\n" + DATA + rest).format(folder=folder), encoding="utf-8")
        paths.append(path)
    return paths[0], paths[1]


def test_from_the_file_to_new_volumes(tmp_path: Path) -> None:
    stage1, stage2 = configs(tmp_path)
    for command, config in (("prod9-train-autoencoder", stage1), ("prod9-train-transformer", stage2)):
        ran = run(command, "train", "--config", config, "--json")
        assert ran.code == 0, ran.err
        ran = run(
            command, "train", "--config", config, "--output-dir", tmp_path / "other", "--check", "--json"
        )
        assert ran.code == 0, ran.err
        assert (ran.json["cases"], ran.json["patients"]) == (12, {"train": 6, "val": 3, "test": 3})
        assert run(command, "test", "--model", tmp_path / f"stage{1 + (config == stage2)}").code == 0
    out = tmp_path / "out"
    ran = run("prod9", "generate", "label", "--model", tmp_path / "stage2", "--label", "liver", "-o", out)
    assert ran.code == 0, ran.err
    (volume,) = out.glob("*.nii.gz")
    assert nib.load(volume).shape == (32, 32, 32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("data.name=fracturemnist3d", "model.num_classes must be 3"),
        ("data.store_flips=true", "left from right"),
        ("data.grid=[16, 16, 16]", "use [32, 32, 32]"),
        ("data.size=64", "use [64, 64, 64]"),
        ("model={kind: decoder, embed_dim: 16, num_heads: 2}", "label_conditional"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, change: str, text: str) -> None:
    _, stage2 = configs(tmp_path)
    ran = run("prod9-train-transformer", "train", "--config", stage2, "--set", change)
    assert ran.code == 2
    assert text in ran.err


def test_a_missing_file(tmp_path: Path) -> None:
    stage1, _ = configs(tmp_path)
    (tmp_path / "medmnist" / "organmnist3d.npz").unlink()
    ran = run("prod9-train-autoencoder", "train", "--config", stage1)
    assert ran.code == 1
    assert "place it there (MD5 a0c5a1ff" in ran.err
    assert not (tmp_path / "stage1").exists()
