"""Autoguidance of a teacher: the option was accepted, and the student learned the flow without it."""

import pytest

from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training.recipes.distilled import DistilledFrom
from prod9.training.run import train

STUDENT = {
    "distillation": {"kind": "shortcut"},
    "loss": {"condition_dropout": 0.0},
    "sampler": {"steps": 2},
    "model": {"num_step_sizes": 2},
}


def test_f10_a_config_cannot_ask_for_it(make_config) -> None:
    distillation = {"kind": "shortcut", "teacher": {"autoguidance_scale": 1.0}}
    with pytest.raises(ConfigError, match=r"distillation.*teacher.autoguidance_scale: expected 0"):
        make_config("maisi_diffusion", "student", **{**STUDENT, "distillation": distillation})


def test_f10_what_the_teacher_records_is_not_dropped(make_config, memory_data) -> None:
    flow = make_config(
        "maisi_diffusion",
        "run",
        training={"max_steps": 1},
        sampler={"steps": 2, "autoguidance_scale": 1.5},
        callbacks={"num_samples": 0},
    )
    train(flow)
    opened = CheckpointManager.open(flow.output_dir)
    with pytest.raises(ConfigError, match=r"got sampler.autoguidance_scale 1.5; say how it is sampled in"):
        DistilledFrom.opened(opened, make_config("maisi_diffusion", "student", **STUDENT))
    told = {**STUDENT, "distillation": {"kind": "shortcut", "teacher": {"steps": 2}}}
    opened = CheckpointManager.open(flow.output_dir)
    assert DistilledFrom.opened(opened, make_config("maisi_diffusion", "student", **told)).record["steps"]
