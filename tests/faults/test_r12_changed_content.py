"""A resumed run names what makes it end elsewhere: changed voxels, another number of threads."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from prod9.data.stores.cache import quick_digest
from tests.harness import run, write_configs


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, list[str]]:
    config, _ = write_configs(tmp_path)
    args = ["prod9-train-autoencoder", "train", "--config", str(config), "--set", "callbacks.num_samples=0"]
    assert run(*args, "--set", "training.max_steps=1").code == 0
    return tmp_path, [*args, "--set", "training.max_steps=2", "--resume"]


def test_r12_a_volume_replaced_under_its_name_is_named(begun, caplog):
    folder, again = begun
    import json

    trained = json.loads((folder / "stage1" / "split.json").read_text())["train"][0]
    path = next(p for p in sorted((folder / "cohort").rglob("*-t2w.nii.gz")) if trained in p.name)
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[7, 8, 6] += 1
    nib.save(nib.Nifti1Image(data, image.affine), path)
    assert run(*again).code == 0
    assert "content of 1 cases changed" in caplog.text
    assert trained in caplog.text


def test_r12_the_same_files_elsewhere_are_the_same(begun, caplog):
    folder, again = begun
    shutil.copytree(folder / "cohort", folder / "moved")
    assert run(*again, "--set", f"data.root={folder / 'moved'}").code == 0
    assert "changed" not in caplog.text


def test_r12_another_number_of_threads_is_named(begun, caplog):
    _, again = begun
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert run(*again).code == 0
    finally:
        torch.set_num_threads(before)
    assert f"threads was {before}, is {before + 1}" in caplog.text


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 100_000, 262_144])
def test_r12_every_byte_of_a_small_file_counts(tmp_path, size):
    path = tmp_path / "a.nii"
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    before = quick_digest(path)
    for place in {0, size // 3, size // 2, size - 1} & set(range(size)):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed.tobytes())
        assert quick_digest(path) != before
    path.write_bytes(content.tobytes() + b"\0")
    assert quick_digest(path) != before
