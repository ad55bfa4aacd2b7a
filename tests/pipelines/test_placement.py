"""GridPlacement: files come to the grid as in training, and go back to their own voxels."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9 import volumes
from prod9.data.layouts.find import find_cases
from prod9.data.preprocessing import Preprocessor, dequantise
from prod9.data.transforms import IntensityScaling
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement, align, head_of
from prod9.volumes import VolumeFile
from tests.fixtures import write_brats_tree

GRID = (20, 24, 16)
NAMES = ("T1", "T2")


def placement(
    spacing: tuple[float, float, float] | None = None, grid: tuple[int, int, int] = GRID
) -> GridPlacement:
    return GridPlacement(
        spacing=spacing, grid=grid, intensity=IntensityScaling(mode="percentile", lower=0.0, upper=99.5)
    )


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    write_brats_tree(tmp_path, 1)
    (case,) = find_cases(tmp_path, modalities=NAMES)
    return case.images


def read(paths: dict[str, Path]) -> dict[str, VolumeFile]:
    return {name: volumes.read(path) for name, path in paths.items()}


@pytest.mark.parametrize("spacing", [None, (5.0, 5.0, 5.0)])
def test_the_grid_holds_what_training_sees(
    paths: dict[str, Path], spacing: tuple[float, float, float] | None
) -> None:
    where = placement(spacing)
    (case,) = find_cases(next(iter(paths.values())).parents[1], modalities=NAMES)
    trained = Preprocessor(where, NAMES)(case)
    placed = where.place(read(paths))
    np.testing.assert_allclose(placed.affine, trained.affine, atol=1e-6)
    for k, name in enumerate(NAMES):
        np.testing.assert_allclose(placed.images[name], dequantise(trained.images[k]), atol=1e-5)
    assert placed.cut == 0.0


def test_back_on_the_files_own_voxels_it_is_the_file(paths: dict[str, Path]) -> None:
    files = read(paths)
    placed = placement().place(files)
    restored = placed.restore(placed.images["T1"])
    original = files["T1"].data
    clipped = np.where(placed.head, np.minimum(original, placed.high), 0.0)
    np.testing.assert_allclose(restored, clipped, atol=0.05)
    spread = placed.restore(np.full(GRID, 0.5, dtype=np.float32), difference=True)
    np.testing.assert_allclose(spread[placed.head], 0.5 * (placed.high - placed.low), rtol=1e-4)
    assert not spread[~placed.head].any()


def test_a_resampled_volume_comes_back_close(paths: dict[str, Path]) -> None:
    placed = placement((3.0, 3.0, 3.0), (24, 28, 24)).place(read(paths))
    flat = placed.restore(np.ones((24, 28, 24), dtype=np.float32))
    assert flat.shape == placed.reference.shape
    np.testing.assert_allclose(flat[placed.head], placed.high, rtol=1e-4)


def test_a_head_beyond_the_grid_is_told(paths: dict[str, Path]) -> None:
    placed = placement(grid=(8, 24, 16)).place(read(paths))
    assert 0.01 < placed.cut < 0.5


def test_labels_are_placed_by_the_nearest(paths: dict[str, Path]) -> None:
    seg = volumes.read(
        next(iter(paths.values())).parent
        / next(p.name for p in next(iter(paths.values())).parent.iterdir() if "seg" in p.name)
    )
    placed = placement((3.0, 3.0, 3.0), (24, 28, 24)).place(read(paths), seg=seg)
    assert placed.seg is not None
    assert placed.seg.shape == (24, 28, 24)
    assert set(np.unique(placed.seg)) <= {0, 1, 2, 3}
    assert placed.seg.any()


def test_other_voxels_are_refused_or_resampled(paths: dict[str, Path], tmp_path: Path) -> None:
    files = read(paths)
    header = files["T2"].header
    coarse = header.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    other = tmp_path / "coarse.nii.gz"
    volumes.write(other, files["T2"].data[::2, ::2, ::2], coarse)
    mixed = {"T1": files["T1"], "T2": volumes.read(other)}
    with pytest.raises(DataError, match="--resample") as refusal:
        align(mixed)
    assert str(other) in str(refusal.value)
    assert str(paths["T1"]) in str(refusal.value)
    moved = align(mixed, resample=True)
    assert moved["T2"].data.shape == files["T1"].data.shape
    np.testing.assert_allclose(moved["T2"].data[::2, ::2, ::2], mixed["T2"].data, atol=1e-2)
    assert align(files)["T2"] is files["T2"]


@pytest.mark.parametrize("order", ["RAS", "SRA"])
def test_the_same_voxels_in_another_order_are_told_and_only_reordered(
    paths: dict[str, Path], tmp_path: Path, order: str
) -> None:
    image = nib.load(paths["T2"])
    ornt = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(order)
    )
    other = tmp_path / "other.nii.gz"
    nib.save(image.as_reoriented(ornt), other)
    files = read({**paths, "T2": other})
    with pytest.raises(DataError, match=rf"stored in another order, {order} instead of LPS; .*--resample"):
        placement().place(files)
    np.testing.assert_allclose(
        placement().place(files, resample=True).images["T2"],
        placement().place(read(paths)).images["T2"],
        atol=1e-4,
    )


def test_a_black_lobe_is_in_the_head_and_the_outside_is_not() -> None:
    head = np.zeros((12, 12, 12), np.float32)
    head[2:10, 2:10, 2:10] = 0.5
    open_below = head.copy()
    open_below[4:7, 4:7, :6] = 0  # a hollow that the outside reaches
    np.testing.assert_array_equal(head_of(open_below), head > 0)
