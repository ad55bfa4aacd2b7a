"""Folders of tiny brains for the data tests."""

from pathlib import Path

import pytest

from tests.fixtures import write_brats_tree


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Six patients of 16×18×14 voxels at 4 mm, named as in BraTS 2023."""
    root = tmp_path / "cohort"
    write_brats_tree(root, 6)
    return root
