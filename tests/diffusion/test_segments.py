"""Parts of a sampling run: they add up to the whole run, whatever the guidance."""

import pytest
import torch

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler, draw_noise
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.diffusion.segments import follow, guided_velocity

SHAPE = (2, 2, 4, 4, 4)
UNET = {
    "latent_channels": 2,
    "num_channels": [8, 8],
    "attention_levels": [False, True],
    "num_head_channels": [0, 4],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 5,
}


def bent(x, time, condition):
    """Return a velocity that depends on place, time and label."""
    return condition.label.view(-1, 1, 1, 1, 1) * (x.sin() - time.view(-1, 1, 1, 1, 1) / 1000)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("shifted", [False, True])
def test_parts_of_a_run_make_the_run(solver, shifted):
    scheduler = RectifiedFlowSchedulerRF(use_timestep_transform=shifted)
    sampler = RectifiedFlowSampler(
        scheduler=scheduler, steps=10, solver=solver, guidance_scale=1.5, guidance_interval=(0.0, 0.6)
    )
    condition = FlowCondition(torch.tensor([1, 2]))
    whole = sampler.sample(bent, SHAPE, condition, torch.Generator().manual_seed(0))
    x, velocity = (
        draw_noise(SHAPE, torch.Generator().manual_seed(0)),
        guided_velocity(sampler, bent, condition),
    )
    for start in (1.0, 0.5):
        share = torch.full((2,), start)
        x = follow(velocity, scheduler, x, start=share, length=0.5, steps=5, solver=solver)
    torch.testing.assert_close(x, whole, atol=1e-5, rtol=1e-5)


def test_each_sample_goes_its_own_way():
    scheduler = RectifiedFlowSchedulerRF()
    target = torch.ones(SHAPE)
    x = torch.zeros(SHAPE)
    moved = follow(
        lambda x, t, share: target,
        scheduler,
        x,
        start=torch.tensor([1.0, 0.5]),
        length=torch.tensor([1.0, 0.25]),
        steps=3,
    )
    torch.testing.assert_close(moved[0], torch.ones(SHAPE[1:]))
    torch.testing.assert_close(moved[1], torch.full(SHAPE[1:], 0.25))


def test_a_network_that_is_told_its_steps_starts_as_one_that_is_not():
    torch.manual_seed(0)
    flow = DiffusionModelRF(**UNET).eval()
    student = DiffusionModelRF(num_step_sizes=3, **UNET).eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    missing, unexpected = student.load_state_dict(flow.state_dict(), strict=False)
    assert (missing, unexpected) == (["step_size_embedding.weight"], [])
    x, times = torch.randn(SHAPE), torch.tensor([1000.0, 300.0])
    condition = FlowCondition.of_heads(torch.tensor([1, 2]), torch.ones(2, 3))
    with torch.no_grad():
        wanted = flow.predict(x, times, condition)
        assert torch.equal(student.predict(x, times, condition.in_steps(torch.tensor([1, 4]))), wanted)
        # Each number of steps has an embedding of its own.
        torch.nn.init.normal_(student.step_size_embedding.weight)
        one, two = (student.predict(x, times, condition.in_steps(steps)) for steps in (1, 2))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("steps", [3, 8, 0])
def test_a_network_refuses_steps_that_it_does_not_know(steps):
    network = DiffusionModelRF(num_step_sizes=3, **UNET)
    condition = FlowCondition.of_heads(torch.tensor([1, 2]), torch.ones(2, 3))
    with pytest.raises(ValueError, match="steps: expected 1, 2 or 4"):
        network.predict(torch.zeros(SHAPE), torch.ones(2), condition.in_steps(steps))
    with pytest.raises(ValueError, match="got None"):
        network.predict(torch.zeros(SHAPE), torch.ones(2), condition)
