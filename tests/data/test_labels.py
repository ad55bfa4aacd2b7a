"""Numbers of segmentations: one meaning a scheme, and no other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.data.labels import (
    AS_IS,
    LABEL_SCHEMES,
    canonical_seg,
    fitting_schemes,
    label_table,
    scheme_from_names,
)
from prod9.errors import ConfigError, DataError
from tests.data.trees import MSD_LABELS

CANONICAL = {"canonical", "brats2018", "brats2019", "brats2020", "brats2021", "brats2023", "brats2024"}
# values of (necrosis, oedema, enhancing tumour) in each scheme
TUMOUR = {"brats2018": (1, 2, 4), "brats2021": (1, 2, 4), "brats2023": (1, 2, 3), "brats2024": (1, 2, 3),
          "msd_task01": (2, 1, 3)}  # fmt: skip


@pytest.mark.parametrize("scheme", TUMOUR)
def test_all_schemes_reach_the_same_regions(scheme: str) -> None:
    values = np.asarray([0, *TUMOUR[scheme]], dtype=np.float32).reshape(1, 2, 2)
    assert canonical_seg(values, scheme, "a.nii").ravel().tolist() == [0, 1, 2, 3]


def test_the_cavity_is_4_in_2024_only() -> None:
    cavity = np.full((1, 1, 1), 4.0)
    assert canonical_seg(cavity, "brats2024", "a.nii").item() == 4
    assert canonical_seg(cavity, "brats2021", "a.nii").item() == 3
    with pytest.raises(DataError, match=r"the values fit .*brats2024: set data.label_scheme"):
        canonical_seg(cavity, "brats2023", "a.nii")


def test_a_table_of_ones_own() -> None:
    assert label_table("1=2, 2=1,3 = 3") == {0: 0, 1: 2, 2: 1, 3: 3}
    assert canonical_seg(np.full((1, 1, 1), 1.0), "1=2,2=1", "a.nii").item() == 2
    for wrong in ("brats1999", "1:2", "", "1=300"):
        with pytest.raises(ConfigError, match=r"data.label_scheme"):
            label_table(wrong)


@given(st.sets(st.integers(0, 5)))
def test_fitting_schemes_know_every_value(values: set[int]) -> None:
    for name in fitting_schemes(values):
        assert values <= set(LABEL_SCHEMES[name])


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        ({name: int(value) for value, name in MSD_LABELS.items()}, "msd_task01"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, "canonical"),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, "brats2024"),
        ({"background": 0, "necrotic core": 1, "peritumoral oedema": 2, "enhancing tumour": 4}, "brats2021"),
        (
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
            "msd_task01",
        ),
        ({"background": 0, "edema": 3, "necrosis": 2, "enhancing": 1}, "0=0,1=3,2=1,3=2"),
        ({"background": 0, "liver": 1, "spleen": 2}, AS_IS),
        ({"background": 0, "left": [1], "right": [2]}, AS_IS),
    ],
)
def test_schemes_from_the_names_of_labels(names: dict[str, int | list[int]], scheme: str) -> None:
    assert scheme_from_names(names) == scheme
    label_table(scheme)


def test_labels_of_other_organs_stay_as_they_are() -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2) * 30
    assert (canonical_seg(values, AS_IS, "a.nii") == values).all()


@pytest.mark.parametrize("scheme", sorted(CANONICAL))
def test_schemes_reach_the_canonical_labels(scheme: str) -> None:
    values = np.array(sorted(LABEL_SCHEMES[scheme]), dtype=np.float32).reshape(1, 1, -1)
    labels = canonical_seg(values + 0.0005, scheme, "a_seg.nii.gz")
    assert labels.dtype == np.uint8
    assert labels.shape == values.shape
    assert labels.ravel().tolist() == [0, 1, 2, 3, 4][: labels.size]


@pytest.mark.parametrize(
    ("scheme", "value"),
    [
        ("brats2021", 3),
        ("brats2018", 3),
        ("brats2023", 4),
        ("canonical", 4),
        ("brats2024", 5),
        ("brats2021", -1),
    ],
)
def test_labels_of_another_year_are_refused(scheme: str, value: int) -> None:
    seg = np.zeros((2, 3, 4), dtype=np.float32)
    seg[0, 0, :2] = value
    with pytest.raises(DataError, match=rf"a_seg\.nii: .*{scheme}, got {value} \(2 voxels\)"):
        canonical_seg(seg, scheme, "a_seg.nii")


@pytest.mark.parametrize("value", [1.01, 0.5, float("nan"), float("inf")])
def test_values_that_are_no_labels_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="got"):
        canonical_seg(np.full((2, 2, 2), value, dtype=np.float32), "brats2021", "a_seg.nii")
