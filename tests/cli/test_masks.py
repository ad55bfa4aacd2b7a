"""``prod9 generate masks --vary``: from a cohort to masks that ``generate patients --seg`` takes."""

from pathlib import Path

import numpy as np
import pytest

from prod9.cli.generate.inputs import find_segmentations
from prod9.volumes import read, write
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks") / "cohort"
    write_brats_tree(root, 2, (32, 36, 28), layout="brats2021")
    return root


def test_a_folder_of_masks_that_grows(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    ran = run("prod9", "generate", "masks", "--vary", cohort, "-n", 3, "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["made"] == [f"mask_000{k}_seg.nii.gz" for k in range(3)]
    assert sorted(find_segmentations([out])) == ["mask_0000", "mask_0001", "mask_0002"]
    first = (out / "mask_0000_seg.nii.gz").read_bytes()
    seen = read(out / "mask_0001_seg.nii.gz")
    assert seen.header.orientation == "RAS"
    assert set(np.unique(seen.data)) <= {0, 1, 2, 3}  # canonical, whatever the values of the year
    assert seen.data.any()
    ran = run("prod9", "generate", "masks", "--vary", cohort, "-n", 4, "-o", out, "--json")
    assert ran.json["made"] == ["mask_0003_seg.nii.gz"]
    assert (out / "mask_0000_seg.nii.gz").read_bytes() == first
    assert run("prod9", "generate", "masks", "--vary", cohort, "-n", 4, "-o", out, "--seed", 1).code == 2


def test_keep_grid_and_brain(cohort: Path, tmp_path: Path) -> None:
    seg = next(cohort.rglob("*_seg.nii.gz"))
    scan = next(cohort.rglob("*_t1.nii.gz"))
    alone = tmp_path / "my_seg.nii.gz"
    alone.write_bytes(seg.read_bytes())
    ran = run("prod9", "generate", "masks", "--vary", alone, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "--brain" in ran.err
    more = ("--brain", scan, "--keep-grid", "--label-scheme", "brats2021")
    ran = run("prod9", "generate", "masks", "--vary", alone, *more, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    made = read(tmp_path / "out" / "mask_0000_seg.nii.gz")
    assert made.header.shape == read(seg).header.shape
    assert (
        run("prod9", "generate", "masks", "--vary", alone, *more, "-o", tmp_path / "x", "--check").code == 0
    )
    assert not (tmp_path / "x").exists()


def test_empty_masks_and_other_voxels_are_named(cohort: Path, tmp_path: Path) -> None:
    scan = next(cohort.rglob("*_t1.nii.gz"))
    header = read(scan).header
    empty = tmp_path / "empty_seg.nii.gz"
    write(empty, np.zeros(header.shape), header, dtype=np.uint8)
    ran = run("prod9", "generate", "masks", "--vary", empty, "--brain", scan, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "1 empty" in ran.err
    other = tmp_path / "other_seg.nii.gz"
    write(other, np.ones((20, 20, 20)), np.eye(4), dtype=np.uint8)
    ran = run("prod9", "generate", "masks", "--vary", other, "--brain", scan, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "got others" in ran.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_mask_outside_of_the_brain_is_named(cohort: Path, tmp_path: Path) -> None:
    seg = next(cohort.rglob("*_seg.nii.gz"))
    scan = read(next(cohort.rglob("*_t1.nii.gz")))
    brain, outside = np.zeros(scan.data.shape), np.zeros(scan.data.shape)
    brain[10:20, 10:20, 10:20], outside[:2, :2, :2] = 1, 1
    write(tmp_path / "brain.nii.gz", brain, scan.header, dtype=np.uint8)
    write(tmp_path / seg.name, outside, scan.header, dtype=np.uint8)
    given = ("--vary", tmp_path / seg.name, "--brain", tmp_path / "brain.nii.gz")
    ran = run("prod9", "generate", "masks", *given, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "got all of it outside" in " ".join(ran.err.split())
    assert not list((tmp_path / "out").glob("*.nii.gz"))
