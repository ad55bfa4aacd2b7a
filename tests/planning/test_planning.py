"""Plans fit the memory they are for, use it, and are configs that load."""

from math import prod
from typing import Any

import pytest

from prod9.config.load import config_from_dict
from prod9.config.schema import AutoencoderConfig, RunConfig, TransformerConfig
from prod9.errors import ConfigError
from prod9.models.meta import count_parameters
from prod9.planning.choose import GIB, StagePlan, counted_once, downsampling_for, plan_family
from prod9.planning.footprint import Device

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
COUNT = counted_once(count_parameters)
"""One memory for all tests: building a network to count its parameters takes longest."""


def fingerprint(**changes: Any) -> dict[str, Any]:
    """BraTS 2021 at 1 mm."""
    return {
        "root": "data", "layout": "brats", "cases": 1251, "modalities": dict.fromkeys(MODALITIES, 1251),
        "resample": False, "spacing_mm": [1.0, 1.0, 1.0], "grid": [144, 192, 144], "segmentations": 0,
    } | changes  # fmt: skip


def plan_stages(data: dict[str, Any], **machine: Any) -> tuple[StagePlan[RunConfig], StagePlan[RunConfig]]:
    """The plans of stage 1 and of the label-conditional stage 2."""
    plans = plan_family(data, family="maskgit", count=COUNT, **machine)
    return plans["stage1"], plans["stage2_label"]


@pytest.mark.parametrize("memory", [8, 16, 24, 48, 80])
@pytest.mark.parametrize("grid", [[144, 192, 144], [96, 112, 96], [48, 64, 48]])
def test_a_plan_fits_and_larger_devices_get_no_less(memory: int, grid: list[int]) -> None:
    stages = plan_stages(fingerprint(grid=grid), memory_bytes=memory * GIB, device="cuda", output_dir="runs")
    for stage in stages:
        assert stage.resources.memory_bytes <= 0.9 * memory * GIB
        assert config_from_dict(stage.values, source="test") == stage.config
        assert stage.multiplications > 0
    stage1, stage2 = (stage.config for stage in stages)
    assert isinstance(stage1, AutoencoderConfig)
    assert isinstance(stage2, TransformerConfig)
    assert stage2.inputs.autoencoder == stage1.output_dir
    assert stage2.data.grid == stage1.data.grid == tuple(grid)
    factor = stage1.model.downsampling_factor
    assert factor == downsampling_for(grid)
    assert all(side % factor == 0 for side in stage1.data.crop_size or grid)
    more = plan_stages(
        fingerprint(grid=grid), memory_bytes=2 * memory * GIB, device="cuda", output_dir="runs"
    )
    assert more[0].resources.parameters >= stages[0].resources.parameters
    assert more[1].resources.parameters >= stages[1].resources.parameters


@pytest.mark.parametrize(("grid", "factor"), [([48, 56, 48], 4), ([144, 192, 144], 8), ([256, 256, 256], 16)])
def test_tokens_stay_within_reach_of_attention(grid: list[int], factor: int) -> None:
    assert downsampling_for(grid) == factor
    assert prod(grid) / factor**3 <= 12000


def test_few_patients_get_a_small_transformer() -> None:
    few = fingerprint(cases=20, modalities=dict.fromkeys(MODALITIES, 20))
    sizes = [
        plan_stages(f, memory_bytes=80 * GIB, device="cuda", output_dir="runs")[1].resources.parameters
        for f in (few, fingerprint())
    ]
    assert sizes[0] < sizes[1] / 3


def test_modalities_that_some_cases_lack_are_left_out() -> None:
    some = fingerprint(modalities={"T1": 1251, "T1ce": 1250, "CT": 1251})
    stage1, stage2 = plan_stages(some, memory_bytes=24 * GIB, device="cuda", output_dir="runs")
    assert stage1.config.data.modalities == ("T1", "CT")
    assert stage2.values["model"]["num_classes"] == 2
    with pytest.raises(ConfigError, match="got none"):
        plan_stages(fingerprint(modalities={"T1": 3}), memory_bytes=GIB, device="cuda", output_dir="runs")


def test_other_spacings_are_resampled() -> None:
    mixed = fingerprint(resample=True, spacing_mm=[1.0, 1.0, 1.5], layout="bids")
    stage1, _ = plan_stages(mixed, memory_bytes=24 * GIB, device="cuda", output_dir="runs")
    assert stage1.values["data"]["spacing"] == [1.0, 1.0, 1.5]
    assert stage1.values["data"]["layout"] == "bids"


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_too_little_memory_is_refused(device: Device) -> None:
    with pytest.raises(ConfigError, match=r"expected at least .* GiB for the smallest network"):
        plan_stages(fingerprint(), memory_bytes=GIB // 10, device=device, output_dir="runs")


def test_a_small_cohort_gets_the_largest_batch_of_the_smallest_network() -> None:
    few = fingerprint(cases=16, modalities=dict.fromkeys(MODALITIES, 16), grid=[48, 64, 48])
    stage2 = plan_stages(few, memory_bytes=24 * GIB, device="cuda", output_dir="runs")[1]
    assert stage2.config.data.batch_size == 4
    assert not stage2.values["model"]["use_checkpointing"]


def test_memory_that_is_there_is_used_for_larger_batches_in_fewer_steps() -> None:
    some = fingerprint(grid=[48, 64, 48])
    small, large = (
        plan_stages(some, memory_bytes=memory * GIB, device="cuda", output_dir="runs")[1]
        for memory in (4, 80)
    )
    assert large.config.data.batch_size >= 8 > small.config.data.batch_size
    assert large.peak_bytes > small.peak_bytes
    assert large.config.training.max_steps * large.config.data.batch_size == 200_000 * 4


def test_muon_and_several_devices_make_room_for_more() -> None:
    one = plan_stages(fingerprint(), memory_bytes=12 * GIB, device="cuda", output_dir="runs")
    more = plan_stages(
        fingerprint(), memory_bytes=12 * GIB, device="cuda", output_dir="runs", muon=True, devices=4
    )
    for stage, before in zip(more, one, strict=True):
        assert config_from_dict(stage.values, source="test") == stage.config
        assert stage.config.training.muon is not None
        assert stage.config.trainer.devices == 4
        assert stage.resources.parameters >= before.resources.parameters
    assert [stage.config.trainer.strategy for stage in more] == ["auto", "fsdp"]
