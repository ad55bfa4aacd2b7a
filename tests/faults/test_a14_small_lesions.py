"""What of a segmentation falls between the voxels of a model is counted and said, and the true cause is named."""

import logging
from pathlib import Path

import numpy as np
import pytest

from prod9.data.intensity import IntensityScaling
from prod9.data.layouts.find import find_cases
from prod9.data.preprocessing import Preprocessor
from prod9.data.seg_loss import describe_loss
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.segmentations import build_segmentation_store
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.segmentation import place_segmentation
from prod9.training.data.brats import warn_of_lost_lesions
from prod9.volumes import write
from tests.faults.heads import centred, head, radius
from tests.fixtures import write_brats_tree

SHAPE, AFFINE = centred((1.9, 1.9, 1.9))
WHERE = GridPlacement(
    spacing=(3.75, 3.75, 3.75), grid=(48, 52, 40), intensity=IntensityScaling("percentile", 0.0, 99.5)
)


def lesions(count: int, size: int = 1) -> np.ndarray:
    """Return labels: ``count`` cubes of ``size`` voxels, well apart, inside of the head."""
    seg = np.zeros(SHAPE, dtype=np.uint8)
    places = np.argwhere(radius(SHAPE, AFFINE) < 0.7)
    taken: list[np.ndarray] = []
    for place in np.random.default_rng(1).permutation(places):
        if all(np.abs(place - other).max() > size + 3 for other in taken):
            taken.append(place)
            seg[tuple(slice(p, p + size) for p in place)] = 1
        if len(taken) == count:
            break
    return seg


def written(tmp_path: Path, seg: np.ndarray) -> tuple[Path, Path]:
    write(tmp_path / "scan.nii.gz", head(SHAPE, AFFINE), AFFINE)
    write(tmp_path / "lesions.nii.gz", seg, AFFINE, dtype=np.uint8)
    return tmp_path / "lesions.nii.gz", tmp_path / "scan.nii.gz"


def test_a14_lost_lesions_are_counted(tmp_path: Path) -> None:
    path, scan = written(tmp_path, lesions(60))
    placed = place_segmentation(path, WHERE, num_classes=4, reference=scan)
    kept = placed.kept[1]
    assert kept.parts == 60
    assert kept.parts_kept == int((placed.seg == 1).sum()) < 30
    assert kept.ml == pytest.approx(60 * 1.9**3 / 1000)
    assert kept.ml_kept == pytest.approx(kept.parts_kept * 3.75**3 / 1000)
    text = describe_loss(placed.kept)
    assert text is not None
    assert f"{60 - kept.parts_kept} of 60 separate parts vanish" in text


def test_a14_large_lesions_lose_nothing(tmp_path: Path) -> None:
    path, scan = written(tmp_path, lesions(5, size=8))
    placed = place_segmentation(path, WHERE, num_classes=4, reference=scan)
    assert placed.kept[1].parts == placed.kept[1].parts_kept == 5
    assert placed.kept[1].ml_kept == pytest.approx(placed.kept[1].ml, rel=0.2)
    assert describe_loss(placed.kept) is None


def test_a14_labels_are_counted_apart(tmp_path: Path) -> None:
    """A thin rim vanishes though the lesion around it stays."""
    seg = lesions(1, size=12) * 2
    inside = np.argwhere(seg)[0] + 5
    seg[tuple(inside)] = 3
    path, scan = written(tmp_path, seg)
    placed = place_segmentation(path, WHERE, num_classes=4, reference=scan)
    assert not placed.kept[2].suffers
    assert placed.kept[3].parts == 1
    assert placed.kept[3].suffers == (3 not in placed.seg)


def test_a14_a_lesion_between_the_voxels_is_not_beyond_the_grid(tmp_path: Path) -> None:
    messages = []
    for shift in range(8):
        seg = np.zeros(SHAPE, dtype=np.uint8)
        seg[tuple(np.asarray(SHAPE) // 2 + [shift % 2, shift // 2 % 2, shift // 4])] = 1
        path, scan = written(tmp_path, seg)
        try:
            placed = place_segmentation(path, WHERE, num_classes=4, reference=scan)
            assert placed.seg.any()
        except DataError as error:
            messages.append(str(error))
    assert len(messages) >= 6, "at most one or two of eight neighbours fall on a voxel of the grid"
    for message in messages:
        assert "beyond" not in message
        assert "3.75 × 3.75 × 3.75 mm" in message
        assert message.startswith(str(tmp_path / "lesions.nii.gz"))


def test_a14_a_lesion_beyond_the_grid_is_called_so(tmp_path: Path) -> None:
    seg = np.zeros(SHAPE, dtype=np.uint8)
    seg[:6, :6, :6] = 1
    path, scan = written(tmp_path, seg)
    small = GridPlacement(spacing=(3.75, 3.75, 3.75), grid=(8, 8, 8), intensity=WHERE.intensity)
    with pytest.raises(DataError, match="all of it beyond"):
        place_segmentation(path, small, num_classes=4, reference=scan)


@pytest.mark.parametrize("again", [False, True])
def test_a14_training_says_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture, again: bool) -> None:
    """Also when the segmentations were stored by an earlier run."""
    (case_dir,) = write_brats_tree(tmp_path / "cohort", 1)
    (case,) = find_cases(tmp_path / "cohort")
    write(case.images["T1"], head(SHAPE, AFFINE), AFFINE)
    write(case_dir / f"{case_dir.name}-seg.nii.gz", lesions(30), AFFINE, dtype=np.uint8)
    preprocess = Preprocessor(WHERE, ("T1",))
    cases = CaseCache(cases=[case], preprocess=preprocess, mode="none")
    for _ in range(1 + again):
        store = build_segmentation_store(
            tmp_path / "store", cases, key=lambda case: case.case_id, grid=WHERE.grid, num_classes=4
        )
    with caplog.at_level(logging.WARNING):
        warn_of_lost_lesions(store.kept, "train")
    assert "1 of 1 segmentations of the train split lose small lesions" in caplog.text
    assert "of 30 separate parts vanish" in caplog.text
