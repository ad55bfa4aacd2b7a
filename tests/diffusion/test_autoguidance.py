"""Autoguidance of a flow: extrapolation of velocities, whose path is known."""

import pytest
import torch

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF

SHAPE = (2, 3, 4, 4, 4)


class Constant:
    """A velocity that is ``value`` with a condition and ``free`` without; residuals are added. Counts samples."""

    def __init__(self, value, free=0.0):
        self.value, self.free, self.samples = value, free, 0

    def __call__(self, x, time, condition, residuals=None):
        self.samples += len(x)
        value = torch.where(condition.label == 0, self.free, self.value).view(-1, 1, 1, 1, 1)
        return value + torch.zeros_like(x) + (0.0 if residuals is None else residuals.mid)


def make_sampler(**kwargs):
    return RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=4, **kwargs)


def moved(sampler, velocity, **kwargs):
    """Return by how much the flow carries the noise, which is the velocity that it follows."""
    condition = FlowCondition(torch.tensor([1, 2]))
    call = sampler.sample_with_controlnet if "controlnet" in kwargs else sampler.sample
    end = call(velocity, SHAPE, condition, torch.Generator().manual_seed(0), **kwargs)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return (end - start).mean().item()


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_velocities_are_extrapolated(solver):
    strong, weak = Constant(2.0, free=1.5), Constant(0.5)
    sampler = make_sampler(solver=solver, guidance_scale=0.4, autoguidance_scale=3.0)
    wanted = 2.0 + 0.4 * (2.0 - 1.5) + 3.0 * (2.0 - 0.5)
    assert moved(sampler, strong, weak=weak) == pytest.approx(wanted, rel=1e-5)
    assert (strong.samples + weak.samples) / 2 == sampler.evaluations


def test_only_the_interval_is_guided():
    strong, weak = Constant(2.0), Constant(0.5)
    sampler = make_sampler(autoguidance_scale=3.0, guidance_interval=(0.0, 0.25))
    assert moved(sampler, strong, weak=weak) == pytest.approx(2.0 + 3.0 * 1.5 / 4, rel=1e-5)
    assert weak.samples == 2


def test_the_same_network_and_scale_0_change_nothing():
    condition, strong = FlowCondition(torch.tensor([1, 2])), Constant(2.0)
    ends = [
        make_sampler(autoguidance_scale=scale).sample(
            strong, SHAPE, condition, torch.Generator().manual_seed(0), weak=weak
        )
        for scale, weak in ((0.0, None), (2.0, strong), (0.0, Constant(9.0)))
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_under_control_the_networks_are_compared_without_it():
    strong, weak = Constant(2.0), Constant(0.5)
    residual = ControlResiduals((), torch.full((1,), 0.1))
    sampler = make_sampler(autoguidance_scale=3.0)
    got = moved(
        sampler,
        strong,
        weak=weak,
        controlnet=lambda *_: residual,
        control=torch.zeros(2, 1, 1, 1, 1),
        control_guidance_scale=2.0,
    )
    assert got == pytest.approx(2.1 + 2.0 * 0.1 + 3.0 * 1.5, rel=1e-5)


def test_a_scale_without_a_weak_model_is_refused():
    with pytest.raises(ValueError, match="weak: expected a weaker network for autoguidance_scale 1"):
        moved(make_sampler(autoguidance_scale=1.0), Constant(2.0))
