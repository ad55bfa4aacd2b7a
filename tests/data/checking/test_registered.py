"""Scans of a case that do not lie on each other are found, with the remedy."""

from pathlib import Path

import numpy as np
import pytest

from prod9.data.checking.report import check_dataset
from prod9.volumes import read, write
from tests.fixtures import write_brats_tree


@pytest.mark.parametrize(("by_header", "deep"), [(True, False), (False, True)])
def test_a_scan_beside_the_others(tmp_path: Path, by_header: bool, deep: bool) -> None:
    write_brats_tree(tmp_path, 3, (32, 36, 28))
    path = next(tmp_path.rglob("*00001-000-t2f.nii.gz"))
    scan = read(path)
    affine, data = scan.header.affine.copy(), scan.data
    if by_header:
        affine[0, 3] += 60
    else:
        data = np.roll(data, 9, axis=0)
    write(path, data, affine)
    found = [
        finding for finding in check_dataset(tmp_path, deep=deep).findings if finding.code == "unregistered"
    ]
    assert [finding.case for finding in found] == ["BraTS-GLI-00001-000"]
    assert "prod9 data preprocess" in found[0].message
    assert path.name in found[0].message


def test_a_lesion_beside_the_head(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3, (32, 36, 28))
    path = next(tmp_path.rglob("*00001-000-seg.nii.gz"))
    seg = read(path)
    labels = np.zeros_like(seg.data)
    labels[:2, :2, :2] = 1
    write(path, labels, seg.header.affine, dtype=np.uint8)
    found = [finding for finding in check_dataset(tmp_path, deep=True).findings if finding.code == "outside"]
    assert [finding.case for finding in found] == ["BraTS-GLI-00001-000"]
    assert found[0].level == "warning"
    assert path.name in found[0].message


def test_what_comes_next_is_registration_on_the_page_too(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 3, (32, 36, 28))
    path = next(tmp_path.rglob("*00001-000-t2f.nii.gz"))
    scan = read(path)
    write(path, np.roll(scan.data, 9, axis=0), scan.header.affine)
    ((_, command),) = check_dataset(tmp_path / "cohort", deep=True).next_steps()
    assert command.startswith("prod9 data preprocess ")
