"""Folders of tiny brains for the data tests, and builders for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import write_brats_tree


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three patients of 16×18×14 voxels at 4 mm, named as in BraTS 2023."""
    root = tmp_path / "cohort"
    write_brats_tree(root, 3)
    return root


@pytest.fixture
def make_transforms() -> Callable[..., Any]:
    """Return ``make(**changes)`` for a TransformBuilder on a 16³ grid without augmentation."""
    from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder

    def make(**changes: Any) -> TransformBuilder:
        augment = dict.fromkeys(("flip", "bias_field", "gamma", "scale", "affine"), 0.0) | changes.pop(
            "augment", {}
        )
        options = {
            "spacing": None,
            "grid": (16, 16, 16),
            "crop_size": None,
            "intensity": IntensityScaling("percentile", 0.0, 99.5),
            "augment": Augmentation(**{f"{name}_prob": prob for name, prob in augment.items()}),
        }
        return TransformBuilder(**options | changes)

    return make


@pytest.fixture
def make_builder(make_transforms: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Return ``make(cache=…, seed=…, **transform changes)`` for a DatasetBuilder of all four modalities."""
    from prod9.data.builders import DatasetBuilder

    def make(*, cache: str = "memory", seed: int = 0, **changes: Any) -> DatasetBuilder:
        return DatasetBuilder(
            transforms=make_transforms(**changes),
            modalities=("T1", "T1ce", "T2", "FLAIR"),
            label_map={"T1": 0, "T1ce": 1, "T2": 2, "FLAIR": 3},
            cache=cache,
            cache_dir=tmp_path / "cache",
            seed=seed,
        )

    return make
