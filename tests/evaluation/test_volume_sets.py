import json

import numpy as np
import pytest
import torch

from prod9 import volumes
from prod9.errors import DataError
from prod9.evaluation.sets.volume_sets import (
    BadFiles,
    Preparation,
    find_volumes,
    match_pairs,
    prepare_for,
    shuffled,
)


def write(path, data=None, affine=None, dtype=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).random((6, 7, 8)) if data is None else data
    volumes.write(path, data, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine, dtype=dtype)
    return path


@pytest.mark.parametrize(
    ("name", "case", "modality"),
    [
        ("T1_0003", "T1_0003", "T1"),
        ("flair_12", "flair_12", "FLAIR"),
        ("T1ce-0001", "T1ce-0001", "T1ce"),
        ("case7_T2_0001", "case7_0001", "T2"),
        ("whatever", "whatever", "volume"),
    ],
)
def test_flat_names(tmp_path, name, case, modality):
    write(tmp_path / f"{name}.nii.gz")
    write(tmp_path / "other_seg.nii.gz")
    (entry,) = find_volumes(tmp_path)
    assert entry.key == (case, modality)


def test_the_manifest_of_generated_volumes_knows_labels(tmp_path):
    write(tmp_path / "3_0000.nii.gz")
    files = {"3_0000.nii.gz": {"label": "heart", "index": 0}}
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {}, "files": files}))
    assert [entry.modality for entry in find_volumes(tmp_path)] == ["heart"]


def test_orientation_does_not_matter(tmp_path):
    data = np.random.default_rng(1).random((6, 7, 8)).astype(np.float32)
    plain = write(tmp_path / "a" / "T1_0.nii.gz", data)
    turned = write(
        tmp_path / "b" / "T1_0.nii.gz",
        data[::-1].transpose(2, 0, 1),
        np.array([[0, -2, 0, 5], [0, 0, 2, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]]),
    )
    sets = [find_volumes(path.parent) for path in (plain, turned)]
    preparation, *_ = prepare_for(*sets, BadFiles(skip=False))
    assert preparation.grid == (6, 7, 8)
    torch.testing.assert_close(preparation.read(sets[0][0]), preparation.read(sets[1][0]))


def test_raw_intensities_are_scaled_and_unit_ones_are_not(tmp_path):
    data = np.zeros((6, 6, 6))
    data[1:5, 1:5, 1:5] = np.random.default_rng(0).integers(100, 900, (4, 4, 4))
    write(tmp_path / "raw" / "T1_0.nii.gz", data, dtype=np.int16)
    write(tmp_path / "unit" / "T1_0.nii.gz", data / 1800)
    raw, unit = (Preparation((6, 6, 6)).read(find_volumes(tmp_path / name)[0]) for name in ("raw", "unit"))
    assert raw.max() == 1.0
    assert raw[..., 0, 0, 0] == 0.0
    assert unit.max() == pytest.approx(data.max() / 1800)


def test_a_head_of_another_box_is_centred(tmp_path):
    data = np.zeros((10, 12, 14))
    data[0:6, 2:8, 3:9] = np.random.default_rng(0).integers(100, 900, (6, 6, 6))
    write(tmp_path / "T1_0.nii.gz", data, dtype=np.int16)
    volume = Preparation((8, 8, 8)).read(find_volumes(tmp_path)[0])
    assert volume.shape == (1, 1, 8, 8, 8)
    assert (volume[0, 0, 1:7, 1:7, 1:7] > 0).float().mean() > 0.9
    assert volume[0, 0, 0].max() == 0.0


def test_a_background_only_volume_names_its_file(tmp_path):
    write(tmp_path / "T1_0.nii.gz", np.zeros((6, 6, 6)), dtype=np.int16)
    (entry,) = find_volumes(tmp_path)
    for grid in ((6, 6, 6), (4, 4, 4)):
        with pytest.raises(DataError, match=r"expected"):
            Preparation(grid).read(entry)


def test_spacing_brings_both_to_one_size(tmp_path):
    fine = write(tmp_path / "a" / "T1_0.nii.gz", np.random.default_rng(0).random((12, 12, 12)) * 0.9 + 0.1)
    coarse = write(tmp_path / "b" / "T1_0.nii.gz", np.full((6, 6, 6), 0.5), np.diag([2.0, 2.0, 2.0, 1.0]))
    sets = [find_volumes(path.parent) for path in (fine, coarse)]
    preparation, *_ = prepare_for(*sets, BadFiles(skip=False), spacing=(2.0, 2.0, 2.0))
    assert preparation.read(sets[0][0]).shape == preparation.read(sets[1][0]).shape == (1, 1, 6, 6, 6)


def test_a_name_for_two_volumes_cannot_be_paired(tmp_path):
    write(tmp_path / "a" / "x.nii.gz")
    write(tmp_path / "b" / "x.nii.gz")
    entries = find_volumes(tmp_path)
    with pytest.raises(DataError, match="expected one volume volume of x to pair"):
        match_pairs(entries, entries)


def test_the_order_follows_from_the_seed(tmp_path):
    for k in range(6):
        write(tmp_path / f"T1_{k}.nii.gz")
        write(tmp_path / f"T2_{k}.nii.gz")
    entries = find_volumes(tmp_path)
    one, same, other = (shuffled(entries, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert [e.modality for e in one] == ["T1"] * 6 + ["T2"] * 6
    assert set(one) == set(entries)
