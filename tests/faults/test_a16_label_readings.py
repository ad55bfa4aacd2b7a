"""Values that mean different things in different years are never told apart by a guess."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.data.checking.report import check_dataset
from prod9.data.intensity import IntensityScaling
from prod9.data.labels import (
    LABEL_SCHEMES,
    WHOLE_TUMOR,
    canonical_seg,
    declared_scheme,
    doubt,
    fitting_schemes,
    readings,
    scheme_from_names,
)
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.segmentation import place_segmentation
from prod9.training.data.brats import warn_of_doubtful_labels
from prod9.volumes import read, write
from tests.fixtures import write_brats_tree
from tests.harness import run


def seg(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).reshape(1, 1, -1)


def test_a16_the_labels_of_2012_to_2015() -> None:
    assert canonical_seg(seg(0, 1, 2, 3, 4), "brats2015", "a.nii").ravel().tolist() == [0, 1, 2, 1, 3]


@pytest.mark.parametrize("scheme", ["canonical", "brats2023", "brats2021", "brats2018", "msd_task01"])
def test_a16_both_readings_of_0_to_4_are_named(scheme: str) -> None:
    with pytest.raises(DataError) as caught:
        canonical_seg(seg(0, 1, 2, 3, 4), scheme, "a_seg.nii")
    for text in ("brats2015", "brats2024", "4 enhancing tumour", "4 resection cavity", "data.label_scheme"):
        assert text in str(caught.value)


def test_a16_both_readings_of_a_4_without_a_3_are_named() -> None:
    with pytest.raises(
        DataError, match=r"4 enhancing tumour in brats2015, brats2018, .*4 resection cavity in brats2024"
    ):
        canonical_seg(seg(0, 1, 2, 4), "canonical", "a_seg.nii")


@given(st.sets(st.integers(0, 6)))
def test_a16_readings_hold_every_scheme_that_fits(values: set[int]) -> None:
    found = readings(values)
    assert sorted(name for names in found.values() for name in names) == sorted(fitting_schemes(values))
    for names in found.values():  # schemes of one reading agree on every value
        assert len({tuple(LABEL_SCHEMES[name][v] for v in values) for name in names}) == 1


def test_a16_a_mask_of_the_whole_tumour() -> None:
    assert canonical_seg(seg(0, 1, 1), WHOLE_TUMOR, "a.nii").ravel().tolist() == [0, 1, 1]
    assert canonical_seg(seg(0, 255), WHOLE_TUMOR, "a.nii").ravel().tolist() == [0, 1]
    with pytest.raises(DataError, match="got 2"):
        canonical_seg(seg(0, 1, 2), WHOLE_TUMOR, "a.nii")


@pytest.mark.parametrize("scheme", ["canonical", "brats2021", "brats2023", "msd_task01"])
def test_a16_a_mask_of_0_and_1_is_asked_about(scheme: str) -> None:
    text = doubt({0, 1}, scheme)
    assert text is not None
    assert WHOLE_TUMOR in text
    assert "data.label_scheme" in text


@pytest.mark.parametrize(
    ("values", "scheme"),
    [({0, 1, 2, 4}, "brats2021"), ({0, 1, 2, 3}, "brats2023"), ({0, 1}, WHOLE_TUMOR), ({0, 1}, "as_is"),
     (set(), "canonical"), ({0}, "canonical"), ({0, 1}, "1=2"), ({0, 9}, "canonical")],
)  # fmt: skip
def test_a16_what_a_name_or_a_user_says_is_not_asked_about(values: set[int], scheme: str) -> None:
    assert doubt(values, scheme) is None


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (
            {"background": 0, "necrosis": 1, "edema": 2, "non-enhancing tumor": 3, "enhancing tumor": 4},
            "brats2015",
        ),
        ({"background": 0, "tumor": 1}, WHOLE_TUMOR),
        ({"background": 0, "whole tumour": 1}, WHOLE_TUMOR),
        ({"0": "background", "1": "lesion"}, WHOLE_TUMOR),
        ({"background": 0, "liver": 1, "tumor": 2}, "as_is"),
        ({"0": "background", "²": "x"}, "as_is"),
        ({"background": 0, "edema": 300}, "as_is"),
        ({"background": 0, "x": float("inf")}, "as_is"),
        ({"a": [[1]], "b": 2}, "as_is"),
        ([], None),
        (None, None),
    ],
)
def test_a16_declared_labels(labels: object, scheme: str | None) -> None:
    assert declared_scheme(labels) == scheme


def test_a16_names_of_two_labels_that_are_one() -> None:
    assert scheme_from_names({"NCR": 1, "ED": 2, "NET": 3, "ET": 4}) == "brats2015"


def relabel(root: Path, table: dict[int, int]) -> None:
    for path in root.rglob("*seg.nii.gz"):
        image = nib.load(path)
        data = np.asarray(image.dataobj)
        changed = np.zeros_like(data)
        for old, new in table.items():
            changed[data == old] = new
        nib.save(nib.Nifti1Image(changed, image.affine), path)


def test_a16_the_check_names_both_readings(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3)
    relabel(tmp_path, {1: 1, 2: 1, 3: 1})
    found = [f for f in check_dataset(tmp_path, deep=True).findings if f.code == "meaning"]
    assert [finding.level for finding in found] == ["warning"]
    assert WHOLE_TUMOR in found[0].message
    for scheme in (WHOLE_TUMOR, "canonical"):  # said aloud
        report = check_dataset(tmp_path, deep=True, label_scheme=scheme)
        assert not [f for f in report.findings if f.code == "meaning"]


def test_a16_some_masks_of_one_value_are_no_matter(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3)
    first = sorted(tmp_path.iterdir())[0]
    relabel(first, {1: 1, 2: 1, 3: 1})
    assert not [f for f in check_dataset(tmp_path, deep=True).findings if f.code == "meaning"]


def test_a16_folders_of_2015(tmp_path: Path) -> None:
    for name in ("HGG/brats_tcia_pat101_1", "HGG/brats_tcia_pat101_283", "LGG/brats_2013_pat0001_1"):
        for number, kind in enumerate(("MR_T1", "MR_T1c", "MR_T2", "MR_Flair", "OT")):
            file = f"VSD.Brain.XX.O.{kind}.{5000 + number}"
            (tmp_path / name / file).mkdir(parents=True)
            (tmp_path / name / file / f"{file}.nii.gz").touch()
    cases = find_cases(tmp_path, require_seg=True)
    assert [case.case_id for case in cases] == [
        "brats_2013_pat0001_1", "brats_tcia_pat101_1", "brats_tcia_pat101_283"
    ]  # fmt: skip
    assert {case.label_scheme for case in cases} == {"brats2015"}
    assert len({case.patient_id for case in cases}) == 2


def test_a16_the_layout_can_be_named(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 1, (4, 4, 4))
    (case,) = scan_dataset(tmp_path, layout="brats2015").cases
    assert case.label_scheme == "brats2015"
    ran = run("prod9", "data", "check", tmp_path, "--label-scheme", "brats2015", "--json")
    assert json.loads(ran.out)["label_schemes"] == {"brats2015": 1}


def test_a16_segmentations_that_steer_and_train_are_doubted_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A 0/1 mask is no necrosis without a word; a scheme that the user gives is beyond doubt."""
    (case_dir,) = write_brats_tree(tmp_path, 1)
    path = case_dir / f"{case_dir.name}-seg.nii.gz"
    file = read(path)
    write(path, file.data > 0, file.header, dtype=np.uint8)
    where = GridPlacement(
        spacing=None, grid=(16, 20, 16), intensity=IntensityScaling("percentile", 0.0, 99.5)
    )
    placed = place_segmentation(path, where, num_classes=4)
    assert placed.doubt is not None
    assert "whole_tumor" in placed.doubt
    assert place_segmentation(path, where, num_classes=4, label_scheme="canonical").doubt is None
    kept = {case_dir.name: placed.kept}
    with caplog.at_level(logging.WARNING):
        warn_of_doubtful_labels(find_cases(tmp_path), kept)
    assert "whole_tumor" in caplog.text
