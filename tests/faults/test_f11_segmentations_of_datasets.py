"""A dataset whose segmentations have no ``seg`` in their names: its scans were taken for segmentations."""

from pathlib import Path

import pytest

from prod9.cli.generate.inputs import find_segmentations
from prod9.data.layouts.find import case_of, find_cases
from prod9.data.lesions import LesionFile
from tests.data.trees import write_msd, write_nnunet


@pytest.mark.parametrize("write", [write_nnunet, write_msd])
def test_f11_the_labels_of_a_dataset_are_found(write, tmp_path: Path) -> None:
    """``--seg``, ``--training`` and ``--vary`` of what ``generate patients --format nnunet`` writes."""
    write(tmp_path / "data", 3)
    found = find_segmentations([tmp_path / "data"])
    assert len(found) == 3
    assert {path.parent.name for path in found.values()} == {"labelsTr"}


def test_f11_a_folder_of_masks_stays_one(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", 2)
    labels = tmp_path / "data" / "labelsTr"
    assert set(find_segmentations([labels]).values()) == set(labels.iterdir())


@pytest.mark.parametrize("write", [write_nnunet, write_msd])
def test_f11_a_segmentation_is_read_as_its_dataset_says(write, tmp_path: Path) -> None:
    """A file in ``labelsTr`` was read without the scheme of its dataset, and without its scan."""
    write(tmp_path / "data", 2)
    for case in find_cases(tmp_path / "data"):
        assert case.seg is not None
        assert case_of(case.seg) == case
        assert LesionFile.of(case.seg).scheme == case.label_scheme
        assert LesionFile.of(case.seg).patient == case.patient_id
    assert case_of(tmp_path / "data" / "labelsTr" / "none.nii.gz") is None
