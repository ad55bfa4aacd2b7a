"""Translation from the mean of the sources: trained, recorded, sampled and refused."""

import numpy as np
import pytest
import torch

from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.maisi_control import MAISIControlPipeline
from prod9.training import run
from prod9.training.run import train

TOLD = {"conditions": ["mask", "image"], "source_modalities": ["T1", "T2"]}


def test_a_translation_from_the_sources_is_trained_and_sampled(make_config, memory_data):
    config = make_config(
        "maisi_controlnet", "run", condition=TOLD, start={"noise": 0.0}, training={"max_steps": 2}
    )
    assert np.isfinite(train(config).metrics["val/loss"])
    assert CheckpointManager.open(config.output_dir).header["config"]["start"] == {"noise": 0.0}
    pipeline = MAISIControlPipeline.from_checkpoint(config.output_dir, overrides=["sampler.steps=1"])
    rng = np.random.default_rng(0)
    segs, images = (rng.random((1, *shape)) for shape in ((16, 16, 16), (2, 16, 16, 16)))
    told = {"segs": (4 * segs).astype(np.uint8), "images": images.astype(np.float32)}
    one, two = (pipeline.sample_label(4, seeds=[seed], **told) for seed in (0, 1))
    assert torch.equal(one, two)  # without noise, the sources decide

    # FLAIR is no source; T2 is, and leaves T1 alone.
    only = told["images"].copy()
    only[:, 1] = 0.0
    origin = pipeline._origin(4, told["images"])
    alone = pipeline._origin(3, told["images"])
    torch.testing.assert_close(alone, pipeline._origin(4, only))
    assert not torch.allclose(origin, alone)
    with pytest.raises(ConfigError, match="sources: expected one of T1, T2 other than T1"):
        pipeline._origin(1, only)


def test_lines_run_from_the_sources_and_for_dropped_control_from_noise(make_config, memory_data):
    config = make_config("maisi_controlnet", "run", condition=TOLD, start={"noise": 0.1})
    family = run.build_module(config).algorithm.family
    assert family.start_noise == 0.1
    from prod9.controlnet.condition import ControlCondition

    target, origin = torch.zeros(2, 2, 4, 4, 4), torch.full((2, 2, 4, 4, 4), 10.0)
    control = ControlCondition(label=torch.tensor([1, 1]), origin=origin, dropped=torch.tensor([False, True]))
    sample, _ = family._corrupt(target, control, torch.Generator().manual_seed(0))
    # The velocity points from the start to the data: the start is its negative here.
    start = -sample.velocity
    assert abs(float(start[0].mean()) - 10.0) < 0.1
    assert float(start[0].std()) < 0.2
    assert abs(float(start[1].std()) - 1.0) < 0.3


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"condition": {"conditions": ["mask"]}}, "start: expected at least two condition.source_modalities"),
        (
            {"condition": {"conditions": ["image"], "source_modalities": ["T1"]}},
            "start: expected at least two condition.source_modalities",
        ),
        (
            {"condition": TOLD, "sampler": {"steps": 1, "guidance_scale": 1.0}},
            "guidance_scale: expected 0 with",
        ),
        (
            {"condition": TOLD, "control": {"control_guidance_scale": 1.0}},
            "control_guidance_scale: expected 0 with start",
        ),
    ],
)
def test_a_start_without_sources_is_refused(make_config, sections, message):
    with pytest.raises(ConfigError, match=message):
        make_config("maisi_controlnet", "run", start={"noise": 0.1}, **sections)
