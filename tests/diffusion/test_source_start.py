"""A flow that starts at the mean of the sources: straight lines from there, and what cannot start there."""

import pytest
import torch

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals
from prod9.diffusion.sampler import RectifiedFlowSampler, SourceStart, draw_noise
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF

SHAPE = (2, 2, 4, 4, 4)
CONDITION = FlowCondition(torch.tensor([1, 2]))


def randn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def translate(velocity, start, *, steps=1, strength=1.0, seed=0, shifted=False):
    sampler = RectifiedFlowSampler(
        scheduler=RectifiedFlowSchedulerRF(use_timestep_transform=shifted), steps=steps
    )
    return sampler.sample_with_controlnet(
        velocity,
        SHAPE,
        CONDITION,
        torch.Generator().manual_seed(seed),
        controlnet=lambda x, t, c, control: ControlResiduals((), torch.zeros(1)),
        control=torch.zeros(2, 1, 1, 1, 1),
        control_strength=strength,
        start=start,
    )


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_true_velocity_carries_the_sources_to_the_target(steps, shifted):
    target, sources = randn(1), torch.stack([randn(2), randn(3)])
    start = SourceStart(sources.mean(0), noise=0.0)
    made = translate(lambda x, t, c, r: target - sources.mean(0), start, steps=steps, shifted=shifted)
    torch.testing.assert_close(made, target, atol=1e-5, rtol=1e-5)


def test_the_noise_on_top_is_all_that_seeds_change():
    origin = randn(1)

    def still(x, t, c, r):
        return torch.zeros_like(x)

    made = translate(still, SourceStart(origin, noise=0.1), seed=5)
    torch.testing.assert_close(made, origin + 0.1 * draw_noise(SHAPE, torch.Generator().manual_seed(5)))
    one, two = (translate(still, SourceStart(origin, noise=0.0), seed=seed) for seed in (0, 1))
    assert torch.equal(one, two)


def test_the_base_alone_starts_at_noise():
    made = translate(lambda x, t, c, r: torch.zeros_like(x), SourceStart(randn(1), noise=0.0), strength=0.0)
    assert torch.equal(made, draw_noise(SHAPE, torch.Generator().manual_seed(0)))
