"""Steps that are measured before a run: those of the run itself in size, and nothing is left behind."""

import pytest
import torch

from prod9.cli.checks import cost
from prod9.config.load import load_config
from prod9.models.meta import count_parameters
from prod9.planning.estimates import estimate
from prod9.training.running import calibration
from prod9.training.running.calibration import can_measure, measure_steps

SMALL = ["data.grid=[16,16,16]", "data.crop_size=null", "data.batch_size=2"]
NET = [*SMALL, "model.embed_dim=16", "model.num_blocks=2", "model.num_heads=2"]
STAGE1 = [
    *SMALL, "model.num_channels=[8,8,8]", "model.num_res_blocks=[1,1,1]", "model.norm_num_groups=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def stage1():
    return load_config("demo/stage1", overrides=STAGE1)


@pytest.mark.parametrize("name", ["demo/stage2_label", "demo/stage2"])
def test_steps_of_transformers_are_measured(name, stage1):
    before = torch.random.get_rng_state()
    found = measure_steps(
        load_config(name, overrides=NET), stage1.model, device=torch.device("cpu"), budget_s=0
    )
    assert found.steps == calibration.FEWEST
    assert 0 < found.seconds < 60
    assert found.memory_bytes is None
    assert torch.equal(before, torch.random.get_rng_state())


def test_steps_of_a_stage_1_are_measured(stage1):
    assert measure_steps(stage1, None, device=torch.device("cpu"), budget_s=0).seconds > 0


def test_what_needs_a_trained_base_is_not_measured():
    assert not can_measure(load_config("demo/stage2_refiner"))


def of(config, **how):
    needs = estimate(config, count=count_parameters, device="cpu")
    return cost.cost_of(config, needs, None, device=torch.device("cpu"), **how)


def test_the_source_of_a_time_is_told(stage1, monkeypatch):
    measured = of(stage1)
    assert measured.to_dict()["source"].startswith("measured in ")
    assert measured.factor is not None
    estimated = of(stage1, measures=False)
    assert estimated.source.startswith("estimated from the speed of one product on cpu")
    again = of(stage1, measures=False, factor=2.0)
    assert again.seconds_per_step == pytest.approx(2 * (estimated.seconds_per_step or 0))
    assert not of(stage1, fits=False).source.startswith("measured")
    monkeypatch.setattr(cost, "BUDGET_S", 0.0)
    assert "too slow to measure" in of(stage1).source


def test_a_run_takes_its_steps_times_one():
    shown = cost.Cost(seconds_per_step=0.5, steps=7200, source="measured").to_dict()
    assert shown["run"] == "60 min"
    assert cost.Cost(seconds_per_step=None, steps=1, source="not known").to_dict() == {"source": "not known"}
