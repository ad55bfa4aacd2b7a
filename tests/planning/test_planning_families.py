"""Plans of every stage of both families: what the data allow, what fits, what builds on what."""

from typing import Any

import pytest

from prod9.config.load import config_from_dict
from prod9.config.schema import RunConfig
from prod9.models.meta import count_parameters
from prod9.planning.choose import GIB, StagePlan, counted_once
from prod9.planning.choose import plan_family as plan_with
from prod9.planning.footprint import Device
from prod9.stages import Family

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
COUNT = counted_once(count_parameters)
"""One memory for all tests: building a network to count its parameters takes longest."""


def plan_family(data: dict[str, Any], **machine: Any) -> dict[str, StagePlan[RunConfig]]:
    return plan_with(data, count=COUNT, **machine)


def brats(**changes: Any) -> dict[str, Any]:
    return {
        "root": "data", "layout": "brats", "cases": 1251, "modalities": dict.fromkeys(MODALITIES, 1251),
        "resample": False, "spacing_mm": [1.0, 1.0, 1.0], "grid": [144, 192, 144], "segmentations": 1251,
        "labels": {"1": {}, "2": {}, "3": {}},
    } | changes  # fmt: skip


def medmnist3d(name: str = "organmnist3d", size: int = 28) -> dict[str, Any]:
    classes = {str(k): 40 for k in range(11 if name == "organmnist3d" else 2)}
    return {
        "root": "data", "layout": "medmnist3d", "name": name, "size": size, "cases": 1500,
        "modalities": {name: 1500}, "classes": {"train": classes}, "resample": False, "spacing_mm": None,
        "grid": [32 if size == 28 else 64] * 3, "segmentations": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("device", "memory"), [("cuda", 12), ("cuda", 80), ("cpu", 8)])
@pytest.mark.parametrize(
    "data", [brats(), brats(grid=[48, 64, 48]), medmnist3d(), medmnist3d("vesselmnist3d", 64)]
)
@pytest.mark.parametrize("family", ["maskgit", "maisi"])
def test_every_stage_fits_and_loads(
    data: dict[str, Any], device: Device, memory: int, family: Family
) -> None:
    plans = plan_family(data, family=family, memory_bytes=memory * GIB, device=device, output_dir="runs")
    wanted = {
        "maskgit": ["stage1", "stage2_label", "stage2", "stage3"],
        "maisi": ["maisi_vae", "maisi_diffusion", "maisi_controlnet"],
    }
    assert list(plans) == wanted[family]
    made = set()
    for name, plan in plans.items():
        assert plan.peak_bytes <= 0.9 * memory * GIB
        assert plan.multiplications > 0
        assert config_from_dict(plan.values, source="test") == plan.config
        assert plan.config.output_dir == f"runs/{name}"
        assert plan.config.data.grid == tuple(data["grid"])
        assert set(plan.values.get("inputs", {}).values()) <= made, "what it builds on comes first"
        made.add(plan.config.output_dir)


def test_stages_that_the_data_do_not_allow() -> None:
    one = brats(modalities={"T1": 1251}, segmentations=0)
    plans = plan_family(one, family="maskgit", memory_bytes=24 * GIB, device="cuda", output_dir="runs")
    assert list(plans) == ["stage1", "stage2_label"]
    plans = plan_family(one, family="maisi", memory_bytes=24 * GIB, device="cuda", output_dir="runs")
    assert list(plans) == ["maisi_vae", "maisi_diffusion"]


def test_labels_follow_the_data() -> None:
    cavity = brats(labels={str(k): {} for k in (1, 2, 3, 4)})
    plans = plan_family(cavity, family="maskgit", memory_bytes=24 * GIB, device="cuda", output_dir="runs")
    assert plans["stage3"].values["condition"]["num_mask_classes"] == 5
    flow = plan_family(cavity, family="maisi", memory_bytes=24 * GIB, device="cuda", output_dir="runs")
    assert flow["maisi_diffusion"].values["data"]["label_map"] == {"T1": 1, "T1ce": 2, "T2": 3, "FLAIR": 4}
    assert flow["maisi_controlnet"].values["condition"]["num_mask_classes"] == 5


def test_left_stays_left_where_classes_tell_it() -> None:
    for name, mirrored in (("organmnist3d", False), ("vesselmnist3d", True)):
        plans = plan_family(
            medmnist3d(name), family="maskgit", memory_bytes=24 * GIB, device="cuda", output_dir="runs"
        )
        for plan in plans.values():
            assert plan.config.data.store_flips is mirrored
        assert plans["stage2"].values["context"]["min_sources"] == 0
        assert plans["stage3"].values["condition"]["num_mask_classes"] == 2
