"""SegmentationStore: small files keyed by content, canonical labels, and nothing invented."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from prod9.data.layouts.find import find_cases
from prod9.data.stores.segmentations import SegmentationStore, build_segmentation_store
from prod9.errors import DataError

Build = Callable[..., SegmentationStore]


@pytest.fixture
def build(cohort: Path, make_builder: Callable[..., Any], tmp_path: Path) -> Build:
    """Return ``build(num_classes=…, **transform changes)`` over the cohort."""

    def make(num_classes: int = 4, **changes: Any) -> SegmentationStore:
        builder = make_builder(**changes)
        return build_segmentation_store(
            tmp_path / "store",
            builder.build_cases(find_cases(cohort)),
            key=builder.case_key,
            grid=changes.get("grid", (16, 16, 16)),
            num_classes=num_classes,
        )

    return make


def seg_file(cohort: Path) -> Path:
    return sorted(cohort.rglob("*-seg.nii.gz"))[0]


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def test_it_holds_what_the_preprocessing_gives(build: Build, cohort: Path, make_builder: Any) -> None:
    store, cases = build(), make_builder().build_cases(find_cases(cohort))
    for i, case in enumerate(cases.cases):
        seg = store[case.case_id]
        assert seg.dtype == torch.uint8
        np.testing.assert_array_equal(seg.numpy(), cases[i].seg)
        assert set(seg.unique().tolist()) <= {0, 1, 2, 3}
        assert seg.any()
    assert store.num_segmented == 3


def test_a_case_without_segmentation_is_background_and_says_so(build: Build, cohort: Path) -> None:
    seg_file(cohort).unlink()
    store = build()
    assert store.num_segmented == 2
    names = [case.case_id for case in find_cases(cohort)]
    assert [store.has(name) for name in names] == [False, True, True]
    assert store[names[0]].shape == (16, 16, 16)
    assert not store[names[0]].any()


def test_files_are_read_again_only_for_other_content_or_options(
    build: Build, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prod9.data.preprocessing import Preprocessor

    build()
    read: list[str] = []
    preprocess = Preprocessor.__call__
    monkeypatch.setattr(
        Preprocessor, "__call__", lambda self, case: (read.append(case.case_id), preprocess(self, case))[1]
    )
    build()
    assert read == []
    rewrite(seg_file(cohort), lambda seg: np.where(seg == 1, 2, seg))
    build()
    assert len(read) == 1
    build(grid=(16, 20, 16))
    assert len(read) == 1 + 3


def test_labels_are_checked_against_the_classes(build: Build, cohort: Path) -> None:
    with pytest.raises(
        DataError, match=r"seg\.nii\.gz: expected labels from 0 to 2, got also 3.*num_mask_classes"
    ):
        build(num_classes=3)
    build()
    with pytest.raises(DataError, match="from 0 to 2"):
        build(num_classes=3)  # also when they were stored before


def test_a_damaged_file_is_named(build: Build, tmp_path: Path) -> None:
    build()
    file = sorted((tmp_path / "store").glob("*.npz"))[0]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{file.name}.*delete it"):
        build()
