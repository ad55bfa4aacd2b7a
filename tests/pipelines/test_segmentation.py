"""A segmentation comes to the grid as in training, wherever its head is found."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.data.builders import DatasetBuilder
from prod9.data.layouts.find import find_cases
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import ConfigError, DataError
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.segmentation import place_segmentation
from tests.fixtures import write_brats_tree

GRID = (16, 16, 16)
INTENSITY = IntensityScaling("percentile", 0.0, 99.5)


def make_placement(
    spacing: tuple[float, float, float] | None = None, grid: tuple[int, int, int] = GRID
) -> GridPlacement:
    return GridPlacement(spacing=spacing, grid=grid, intensity=INTENSITY)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """The folder of one patient."""
    write_brats_tree(tmp_path / "cohort", 1)
    return next((tmp_path / "cohort").iterdir())


def seg_of(case: Path) -> Path:
    return next(case.glob("*-seg.nii.gz"))


def write(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.int16), affine), path)
    return path


@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 3.0)])
def test_beside_its_case_it_lies_as_in_training(
    case: Path, tmp_path: Path, spacing: tuple[float, float, float] | None
) -> None:
    off = dict.fromkeys(("flip_prob", "bias_field_prob", "gamma_prob", "scale_prob", "affine_prob"), 0.0)
    builder = DatasetBuilder(
        transforms=TransformBuilder(
            spacing=spacing, grid=GRID, crop_size=None, intensity=INTENSITY, augment=Augmentation(**off)
        ),
        modalities=("T1", "T1ce", "T2", "FLAIR"),
        label_map={},
        cache="memory",
        cache_dir=None,
        seed=0,
    )
    trained = builder.build_cases(find_cases(case.parent))[0]
    placed = place_segmentation(seg_of(case), make_placement(spacing), num_classes=4)
    assert placed.found_by == "case"
    np.testing.assert_array_equal(placed.seg, trained.seg)
    np.testing.assert_allclose(placed.affine, trained.affine, atol=1e-6)


def test_every_voxel_keeps_its_place_in_the_world(case: Path, tmp_path: Path) -> None:
    placed = place_segmentation(seg_of(case), make_placement(), num_classes=4)
    file = nib.load(seg_of(case))
    labels = np.asarray(file.dataobj)
    to_file = np.linalg.inv(file.affine) @ placed.affine
    for voxel in np.argwhere(placed.seg):
        there = np.rint((to_file @ [*voxel, 1])[:3]).astype(int)
        assert labels[tuple(there)] == placed.seg[tuple(voxel)]
    assert (placed.seg > 0).sum() == (labels > 0).sum()


def test_a_reference_says_where_the_head_is(case: Path, tmp_path: Path) -> None:
    alone = tmp_path / "drawn by hand.nii.gz"
    alone.write_bytes(seg_of(case).read_bytes())
    scan = next(case.glob("*-t2f.nii.gz"))
    with_scan = place_segmentation(alone, make_placement(), num_classes=4, reference=scan)
    beside = place_segmentation(seg_of(case), make_placement(), num_classes=4)
    assert with_scan.found_by == "reference"
    np.testing.assert_array_equal(with_scan.seg, beside.seg)


@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 1, 0), (0, 1, 1)])
def test_on_the_models_own_grid_it_stays_as_it_is(tmp_path: Path, flips: tuple[int, int, int]) -> None:
    seg = np.zeros(GRID, dtype=np.uint8)
    seg[2, 5, 9], seg[0, 15, 3] = 3, 1
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [10, -20, 30]
    stored, turned = seg, affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            stored = np.flip(stored, axis)
            turned[:3, 3] += turned[:3, axis] * (GRID[axis] - 1)
            turned[:3, axis] *= -1
    path = write(tmp_path / "mask.nii.gz", stored, turned)
    placed = place_segmentation(path, make_placement((4.0, 4.0, 4.0)), num_classes=4)
    assert placed.found_by == "field"
    np.testing.assert_array_equal(placed.seg, seg)
    np.testing.assert_allclose(placed.affine, affine, atol=1e-5)
    assert placed.cut == 0.0


def test_a_finer_grid_is_resampled_by_nearest_only(tmp_path: Path) -> None:
    seg = np.zeros((32, 32, 32), dtype=np.uint8)
    seg[10:18, 12:20, 14:22] = 1
    seg[12:16, 14:18, 16:20] = 3
    path = write(tmp_path / "mask.nii.gz", seg, np.diag([2.0, 2.0, 2.0, 1.0]))
    placed = place_segmentation(path, make_placement((4.0, 4.0, 4.0)), num_classes=4)
    assert set(np.unique(placed.seg)) == {0, 1, 3}, "no label between them is made up"
    assert (placed.seg == 3).sum() == pytest.approx((seg == 3).sum() / 8, rel=0.5)


def test_what_lies_beyond_the_grid_is_counted_and_all_of_it_refused(tmp_path: Path) -> None:
    seg = np.zeros((40, 16, 16), dtype=np.uint8)
    seg[0, 8, 8] = seg[20, 8, 8] = 1
    path = write(tmp_path / "mask.nii.gz", seg, np.eye(4))
    assert place_segmentation(path, make_placement(), num_classes=4).cut == pytest.approx(0.5)
    seg[20, 8, 8] = 0
    write(path, seg, np.eye(4))
    with pytest.raises(DataError, match=r"mask\.nii\.gz.*all of it beyond.*reference"):
        place_segmentation(path, make_placement(), num_classes=4)


def labelled(tmp_path: Path, *values: int) -> Path:
    seg = np.zeros(GRID)
    seg.flat[: len(values)] = values
    return write(tmp_path / "mask.nii.gz", seg, np.eye(4))


@pytest.mark.parametrize(
    ("values", "scheme", "text"),
    [
        ((1, 7), "auto", r"expected labels \[0, 1, 2, 3\] of scheme canonical, got 7 \(1 voxel\)"),
        ((4,), "brats2024", "expected labels from 0 to 3, got also 4"),
        ((3,), "brats2021", "scheme brats2021, got 3"),
    ],
)
def test_strange_labels_are_refused(tmp_path: Path, values: tuple[int, ...], scheme: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        place_segmentation(labelled(tmp_path, *values), make_placement(), num_classes=4, label_scheme=scheme)


def test_ones_own_scheme_is_applied_and_an_unknown_one_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path, 9)
    placed = place_segmentation(path, make_placement(), num_classes=4, label_scheme="9=2")
    assert set(np.unique(placed.seg)) == {0, 2}
    with pytest.raises(ConfigError, match="scheme"):
        place_segmentation(path, make_placement(), num_classes=4, label_scheme="brats1066")


def test_a_scan_on_other_voxels_is_refused_naming_both(case: Path, tmp_path: Path) -> None:
    scan = write(tmp_path / "scan.nii.gz", np.ones((8, 8, 8)), np.diag([3.0, 3.0, 3.0, 1.0]))
    with pytest.raises(DataError, match=r"-seg\.nii\.gz: expected the voxel grid of .*scan\.nii\.gz"):
        place_segmentation(seg_of(case), make_placement(), num_classes=4, reference=scan)


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p.write_bytes(b"x" * 400) and p])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(DataError, match=r"gone\.nii\.gz"):
        place_segmentation(make(tmp_path / "gone.nii.gz"), make_placement(), num_classes=4)
