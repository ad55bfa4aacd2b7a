"""MedMNIST3D from its file to generated volumes, through the commands."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.config.data import MEDMNIST3D_CLASSES
from prod9.data.datasets.medmnist import MedMNIST3DVolumes
from prod9.data.foreground import ForegroundMasks
from prod9.data.layouts.medmnist import open_medmnist3d
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


STAGE3 = """
stage: maskgit_controlnet
output_dir: {folder}/stage3
inputs: {{transformer: {folder}/stage2}}
data:
  kind: medmnist3d
  root: {folder}/medmnist
  grid: [32, 32, 32]
  store_flips: false
  augment: {{flip_prob: 0.0}}
  batch_size: 2
  store_dir: {folder}/stage2/store
model: {{channels: [4]}}
condition: {{num_mask_classes: 2}}
sampler: {{steps: 2, order: halton}}
validation: {{num_volumes: 2}}
training: {{max_steps: 2, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""
MAISI = """
stage: maisi_{stage}
output_dir: {folder}/maisi_{stage}
{inputs}
data:
  kind: medmnist3d
  root: {folder}/medmnist
  grid: [32, 32, 32]
  store_flips: false
  augment: {{flip_prob: 0.0}}
  batch_size: 2
  {first}
{model}
training: {{max_steps: 2, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""
KL = """model: {num_channels: [4, 4, 8], num_res_blocks: [1, 1, 1], norm_num_groups: 4}
loss: {adversarial: {weight: 0.0}}"""
UNET = """model: {num_channels: [8, 8], attention_levels: [false, true], num_head_channels: [0, 4], norm_num_groups: 4,
        num_res_blocks: 1, num_class_embeds: 12, include_spacing_input: false}
sampler: {steps: 2}"""

FLOW_CONTROL = """model: {channels: [4]}
condition: {num_mask_classes: 2}
sampler: {steps: 2}
validation: {num_volumes: 2}"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file, stage 1 and a label-conditional stage 2."""
    folder = tmp_path_factory.mktemp("medmnist")
    for command, config in zip(
        ("prod9-train-autoencoder", "prod9-train-transformer"), configs(folder), strict=True
    ):
        ran = run(command, "train", "--config", config, "--set", "training.max_steps=2", "--json")
        assert ran.code == 0, ran.err
    return folder


def test_few_shot(trained: Path) -> None:
    changes = [
        "--set=model={kind: single_stream, num_classes: 11, embed_dim: 16, num_blocks: 2, num_heads: 2, "
        "patch_size: 2, aligned: false}",
        "--set=context={min_sources: 0, max_examples: 2}",
        "--set=training.max_steps=2",
    ]
    ran = run("prod9-train-transformer", "train", "--config", trained / "config1.yaml", *changes,
              "--output-dir", trained / "few", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    unpacked = run("prod9", "data", "unpack", trained / "medmnist" / "organmnist3d.npz", "-o", trained / "nifti",
                   "--subset", "train", "--label", "liver", "--label", "kidney-right", "--json")  # fmt: skip
    assert unpacked.code == 0, unpacked.err
    assert len(unpacked.json["made"]) == 4
    liver = trained / "nifti" / "organmnist3d-train-00000_liver.nii.gz"
    assert nib.load(liver).shape == (28, 28, 28)
    args = ["prod9", "generate", "label", "--model", trained / "few", "--label", "liver"]
    ran = run(*args, "-o", trained / "shown", "--example", liver)
    assert ran.code == 0, ran.err
    assert nib.load(trained / "shown" / "liver_0000.nii.gz").shape == (32, 32, 32)
    # A result made without the example is another one.
    ran = run(*args, "-o", trained / "shown")
    assert ran.code == 2
    assert "examples" in ran.err
    ran = run(*args, "-o", trained / "many", *["--example", liver] * 3)
    assert ran.code == 2
    assert "at most 2 examples" in ran.err
    ran = run(*args, "--label", "heart", "-o", trained / "many", "--example", liver)
    assert "expected one --label" in ran.err
    ran = run(
        *args[:3], "--model", trained / "stage2", "-l", "liver", "-o", trained / "many", "--example", liver
    )
    assert ran.code == 2
    assert "at most 0 examples" in ran.err


def test_the_foreground_steers(trained: Path) -> None:
    config = trained / "stage3.yaml"
    config.write_text(STAGE3.format(folder=trained), encoding="utf-8")
    ran = run("prod9-train-maskgit-controlnet", "train", "--config", config, "--set",
              "condition.num_mask_classes=4")  # fmt: skip
    assert ran.code == 2
    assert "condition.num_mask_classes: expected 2" in ran.err
    ran = run("prod9-train-maskgit-controlnet", "train", "--config", config, "--json")
    assert ran.code == 0, ran.err
    scores = ran.json["metrics"]
    assert 0.5 < scores["val/foreground_dice_real"] + 0.5 <= 1.5
    assert {"val/foreground_dice", "val/foreground_dice_base"} <= scores.keys()
    source = trained / "medmnist" / "organmnist3d.npz"
    assert run("prod9", "data", "unpack", source, "-o", trained / "test", "-l", "liver").code == 0
    seg = trained / "test" / "organmnist3d-test-00000_seg.nii.gz"
    out = trained / "steered"
    ran = run("prod9-train-maskgit-controlnet", "generate", "--model", trained / "stage3", "--seg", seg, "--label",
              "liver", "-o", out)  # fmt: skip
    assert ran.code == 0, ran.err
    placed = nib.load(out / "organmnist3d-test-00000_seg.nii.gz").get_fdata()
    file = open_medmnist3d(source.parent, "organmnist3d", 28)
    held = MedMNIST3DVolumes(*file.read("test", 11), file.identities("test"), MEDMNIST3D_CLASSES["organmnist3d"],
                             (32,) * 3)  # fmt: skip
    wanted = ForegroundMasks(held, is_shape=False)["organmnist3d-test-00000"].numpy()
    np.testing.assert_array_equal(placed, wanted, err_msg="a file is placed as training pads")
    assert nib.load(out / "organmnist3d-test-00000_liver_0000.nii.gz").shape == (32, 32, 32)


def test_maisi_from_the_class(trained: Path) -> None:
    inputs = f"inputs: {{autoencoder: {trained}/maisi_vae}}"
    for stage, parts in (
        ("vae", {"inputs": "", "first": "", "model": KL}),
        ("diffusion", {"inputs": inputs, "first": "first_label: 1", "model": UNET}),
    ):
        config = trained / f"{stage}.yaml"
        config.write_text(MAISI.format(folder=trained, stage=stage, **parts), encoding="utf-8")
        ran = run(f"prod9-train-maisi-{stage}", "train", "--config", config, "--json")
        assert ran.code == 0, ran.err
    ran = run("prod9-train-maisi-diffusion", "generate", "--model", trained / "maisi_diffusion", "--label",
              "pancreas", "-o", trained / "flow")  # fmt: skip
    assert ran.code == 0, ran.err
    assert nib.load(trained / "flow" / "pancreas_0000.nii.gz").shape == (32, 32, 32)
    ran = run("prod9-train-maisi-diffusion", "train", "--config", config, "--set", "data.first_label=0")
    assert ran.code == 2
    assert "data.first_label: expected 1" in ran.err
    config = trained / "flow_control.yaml"
    more = {"inputs": f"inputs: {{diffusion: {trained}/maisi_diffusion}}", "first": "first_label: 1",
            "model": FLOW_CONTROL}  # fmt: skip
    config.write_text(MAISI.format(folder=trained, stage="controlnet", **more), encoding="utf-8")
    ran = run("prod9-train-maisi-controlnet", "train", "--config", config, "--json")
    assert ran.code == 0, ran.err
    assert "val/foreground_dice" in ran.json["metrics"]
    unpacked = trained / "shape"
    source = trained / "medmnist" / "organmnist3d.npz"
    assert run("prod9", "data", "unpack", source, "-o", unpacked, "-l", "liver").code == 0
    ran = run("prod9-train-maisi-controlnet", "generate", "--model", trained / "maisi_controlnet", "--label", "liver",
              "--seg", unpacked / "organmnist3d-test-00000_seg.nii.gz", "-o", trained / "steered_flow")  # fmt: skip
    assert ran.code == 0, ran.err
    made = trained / "steered_flow" / "organmnist3d-test-00000_liver_0000.nii.gz"
    assert nib.load(made).shape == (32, 32, 32)
    ran = run(
        "prod9-train-maisi-controlnet", "train", "--config", config, "--set", "condition.num_mask_classes=4"
    )
    assert ran.code == 2
    assert "num_mask_classes 2" in ran.err


def test_what_cannot_be_unpacked(tmp_path: Path) -> None:
    path = write_medmnist3d(tmp_path)
    for args, text in (
        ((path, "--subset", "all"), "--subset: expected train, val, test"),
        ((path, "--label", "brain"), "got brain"),
        ((path.rename(tmp_path / "other.npz"),), "expected organmnist3d"),
    ):
        ran = run("prod9", "data", "unpack", *args, "-o", tmp_path / "out")
        assert ran.code in (1, 2)
        assert text in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("context={min_sources: 0, max_examples: 1}", "since single_stream alone reads it"),
        (
            "model={kind: single_stream, num_classes: 11, embed_dim: 16, num_heads: 2}",
            "min_sources: 0, max_examples",
        ),
        ("data.name=fracturemnist3d", "model.num_classes: expected 3"),
        ("data.store_flips=true", "left and right organs"),
        ("data.grid=[16, 16, 16]", "use [32, 32, 32]"),
        ("data.size=64", "use [64, 64, 64]"),
        ("model={kind: decoder, num_classes: 11, embed_dim: 16, num_heads: 2}", "label_conditional"),
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


@pytest.mark.parametrize("check", [True, False])
def test_a_download_without_its_package_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist.info", None)
    stage1, _ = configs(tmp_path)
    (tmp_path / "medmnist" / "organmnist3d.npz").unlink()
    options = ("--set", "data.download=true", *(("--check",) if check else ()))
    ran = run("prod9-train-autoencoder", "train", "--config", stage1, *options)
    assert ran.code != 0
    assert "pip install 'prod9[medmnist]'" in ran.err
    assert not (tmp_path / "stage1").exists()
