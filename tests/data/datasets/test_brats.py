"""Samples of the BraTS datasets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prod9.data.layouts.find import find_cases
from prod9.data.sampling import SampleKey, StepBatchSampler

Make = Callable[..., Any]


@pytest.fixture
def stage1(cohort: Path, make_builder: Make) -> Any:
    builder = make_builder(crop_size=(8, 8, 8), augment={"flip": 0.5, "gamma": 0.5}, seed=3)
    return builder.build_brats_stage1(builder.build_cases(find_cases(cohort)), train=True)


def test_a_stage_1_sample(stage1: Any) -> None:
    sample = stage1[SampleKey(index=5, draw=0)]
    assert sample["image"].shape == (1, 8, 8, 8)
    assert sample["label"].dtype == torch.int64
    assert (int(sample["label"]), sample["modality"]) == (1, "T1ce")
    assert sample["case_id"] == "BraTS-GLI-00001-000"


def test_every_volume_is_an_item(stage1: Any) -> None:
    assert len(stage1) == 12
    seen = {(stage1[i]["case_id"], stage1[i]["modality"]) for i in range(12)}
    assert len(seen) == 12
    sampler = StepBatchSampler(num_items=12, batch_size=4, num_steps=3, seed=0)
    drawn = {(stage1[k]["case_id"], stage1[k]["modality"]) for keys in sampler for k in keys}
    assert drawn == seen


def test_an_int_is_the_whole_volume_always_the_same(stage1: Any) -> None:
    assert stage1[2]["image"].shape == (1, 16, 16, 16)
    assert torch.equal(stage1[2]["image"], stage1[2]["image"])


def test_the_draw_decides_the_augmentation(stage1: Any) -> None:
    first, again, other = (stage1[SampleKey(2, draw)]["image"] for draw in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_whole_volume_on_demand(stage1: Any) -> None:
    whole = stage1[SampleKey(2, 4, whole=True)]["image"]
    assert whole.shape == (1, 16, 16, 16)


def test_an_all_modalities_sample(cohort: Path, make_builder: Make) -> None:
    builder = make_builder()
    dataset = builder.build_brats_stage2(builder.build_cases(find_cases(cohort)))
    sample = dataset[1]
    assert len(dataset) == 3
    assert list(sample["images"]) == ["T1", "T1ce", "T2", "FLAIR"]
    assert all(image.shape == (1, 16, 16, 16) for image in sample["images"].values())
    assert sample["seg"].dtype == torch.int64
    assert sample["seg"].shape == (1, 16, 16, 16)
    assert (sample["case_id"], sample["patient_id"]) == ("BraTS-GLI-00001-000", "BraTS-GLI-00001")
    keyed = dataset[SampleKey(1, 9)]
    assert torch.equal(keyed["images"]["T2"], sample["images"]["T2"])


def test_a_case_without_segmentation(tmp_path: Path, make_builder: Make) -> None:
    from tests.fixtures import write_brats_tree

    write_brats_tree(tmp_path / "plain", 1, with_seg=False)
    builder = make_builder(cache="disk")
    dataset = builder.build_brats_stage2(builder.build_cases(find_cases(tmp_path / "plain")))
    assert "seg" not in dataset[0]
