"""Distilling a flow: what is started from, kept, resumed, sampled and refused."""

import numpy as np
import pytest
import torch

from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.maisi import MAISIPipeline
from prod9.training import run
from prod9.training.lightning.controlnet_lightning import ControlNetLightning
from prod9.training.run import train

STUDENT = {
    "distillation": {"kind": "shortcut"},
    "loss": {"condition_dropout": 0.0},
    "sampler": {"steps": 2},
    "callbacks": {"num_samples": 1},
}


@pytest.fixture
def make_student(make_config):
    """Return ``make(name, **sections)`` for a student of the flow in ``run``, and that flow's config."""

    def make(name, **sections):
        merged = {key: {**STUDENT.get(key, {}), **value} for key, value in sections.items()}
        model = {"num_step_sizes": 2, **merged.pop("model", {})}
        return make_config("maisi_diffusion", name, **{**STUDENT, **merged, "model": model})

    return make


@pytest.fixture
def flow(make_config, memory_data):
    """Return the config of a trained flow, sampled with guidance."""
    config = make_config(
        "maisi_diffusion",
        "run",
        training={"max_steps": 2},
        sampler={"steps": 3, "guidance_scale": 1.5},
        callbacks={"num_samples": 0},
    )
    train(config)
    return config


def test_a_flow_is_distilled_resumed_and_sampled_in_one_step(flow, make_student, memory_data, tmp_path):
    config = make_student("student", training={"max_steps": 4})
    result = train(config, init_from=flow.output_dir)
    assert {"val/loss", "val/loss_in_1", "val/loss_in_2", "val/sample_distance"} <= set(result.metrics)
    teacher = CheckpointManager.open(flow.output_dir)
    record = CheckpointManager.open(config.output_dir).header["data"]["distilled"]
    assert record["steps"] == [1, 2]
    assert record["teacher"]["sha256"] == teacher.sha256
    assert record["sampler"]["guidance_scale"] == 1.5
    assert str(tmp_path) not in str(record)
    assert CheckpointManager.open(config.output_dir).header["data"]["scale_factor"] == 0.5

    # The run keeps its teacher: the other run may be gone.
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    more = make_student("student", training={"max_steps": 5})
    assert train(more, resume="auto").step == 5
    assert np.isfinite(run.validate(more)["val/loss_in_1"])

    one, two = (
        next(MAISIPipeline.from_checkpoint(more.output_dir, overrides=[f"sampler.steps={n}"]).generate(
            "T1", num_samples=1
        )).data for n in (1, 2)
    )  # fmt: skip
    assert one.shape == (16, 16, 16)
    assert not np.array_equal(one, two)
    export = CheckpointManager.export(more.output_dir, tmp_path / "export")
    again = next(MAISIPipeline.from_checkpoint(export).generate("T1", num_samples=1))
    np.testing.assert_allclose(again.data, two, atol=1e-5)


def test_the_student_starts_as_its_teacher(flow, make_student):
    module = run.build_module(make_student("student"))
    opened = CheckpointManager.open(flow.output_dir)
    module.start_from(opened)
    recipe = module.recipe
    teacher = recipe.teacher.network
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    own, theirs = recipe.diffusion.state_dict(), teacher.state_dict()
    assert set(own) - set(theirs) == {"step_size_embedding.weight"}
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    assert not own["step_size_embedding.weight"].any()


def test_what_cannot_be_distilled_is_refused(flow, make_config, make_student):
    with pytest.raises(ConfigError, match="num_step_sizes: expected a number with distillation"):
        make_student("student", model={"num_step_sizes": None})
    with pytest.raises(
        ConfigError, match="num_step_sizes: expected a number with distillation and null without"
    ):
        make_config("maisi_diffusion", "other", model={"num_step_sizes": 2})
    with pytest.raises(ConfigError, match=r"loss\.condition_dropout: expected 0 with distillation"):
        make_student("student", loss={"condition_dropout": 0.1})
    config = make_student("student", training={"max_steps": 1})
    with pytest.raises(ConfigError, match="distillation: expected a teacher"):
        train(config)
    with pytest.raises(CheckpointError, match="expected a teacher of the configured flow"):
        train(make_student("shifted", flow={"use_timestep_transform": True}), init_from=flow.output_dir)
    train(config, init_from=flow.output_dir)

    # It is sampled as it was taught.
    for override, message in (
        ("sampler.steps=4", "sampler.steps: expected 1 or 2, the numbers of steps"),
        ("sampler.guidance_scale=1.5", "sampler.guidance_scale: expected 0 for a distilled network"),
        ("sampler.solver=heun", "sampler.solver: expected euler"),
    ):
        with pytest.raises(ConfigError, match=message):
            MAISIPipeline.from_checkpoint(config.output_dir, overrides=[override])

    # Neither a flow, nor a student, nor a control network starts from a student.
    with pytest.raises(CheckpointError, match="expected a flow, got a network that was distilled"):
        train(make_config("maisi_diffusion", "tuned"), init_from=config.output_dir)
    with pytest.raises(CheckpointError, match="expected a flow, got a network that was distilled"):
        train(make_student("grandchild"), init_from=config.output_dir)
    steered = make_config("maisi_controlnet", "control", inputs={"diffusion": config.output_dir})
    with pytest.raises(CheckpointError, match="expected a flow, got a network that was distilled"):
        ControlNetLightning(steered)
