"""The flow against closed forms: straight lines, and a mixture of Gaussians whose velocity is known."""

import math

import pytest
import torch

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.sampler import RectifiedFlowSampler, draw_noise
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF

SHAPE = (2, 3, 4, 4, 2)


def scheduler(**options):
    return RectifiedFlowSchedulerRF(**options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def condition(batch=2):
    return FlowCondition(torch.arange(1, batch + 1))


@pytest.mark.parametrize("steps", [1, 10, 30, 1000])
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_straight_line_is_recovered(steps, solver, shifted):
    x_0 = torch.randn(SHAPE, generator=generator(5))
    noise = draw_noise(SHAPE, generator())
    sampler = RectifiedFlowSampler(
        scheduler=scheduler(use_timestep_transform=shifted), steps=steps, solver=solver
    )
    result = sampler.sample(lambda x, t, c: x_0 - noise, SHAPE, condition(), generator())
    assert (result - x_0).abs().max() / x_0.abs().max() < 1e-5


def mixture_velocity(x, t):
    """Velocity of the flow between ½N(−2, 0.25) + ½N(2, 0.25) and N(0, 1), in each voxel by itself."""
    t = t.double().view(-1, 1, 1, 1, 1)
    x = x.double()
    variance = 0.25 * (1 - t) ** 2 + t**2
    log_weight = torch.stack([-((x - (1 - t) * m) ** 2) / (2 * variance) for m in (-2.0, 2.0)])
    weight = log_weight.softmax(0)
    total = torch.zeros_like(x)
    for w, m in zip(weight, (-2.0, 2.0), strict=True):
        rest = x - (1 - t) * m
        # E[x_0 − noise | x_t] of one Gaussian, by linear regression on x_t.
        total += w * (m + (0.25 * (1 - t) - t) / variance * rest)
    return total.float()


def solution(solver, steps):
    flow = scheduler(num_train_timesteps=1)
    sampler = RectifiedFlowSampler(scheduler=flow, steps=steps, solver=solver)
    return sampler.sample(lambda x, t, c: mixture_velocity(x, t), (1, 1, 8, 8, 8), condition(1), generator())


def test_the_error_falls_with_the_order_of_the_solver():
    exact = solution("heun", 512)
    assert abs(exact.abs().mean() - 2.0) < 0.1
    for solver, order in (("euler", 1), ("heun", 2)):
        errors = [(solution(solver, n) - exact).square().mean().sqrt().item() for n in (32, 64)]
        measured = math.log2(errors[0] / errors[1])
        assert abs(measured - order) < 0.3, (solver, errors)


def test_corruption_runs_from_data_to_noise_along_the_velocity():
    flow = scheduler()
    x_0, noise = torch.randn(SHAPE, generator=generator(1)), torch.randn(SHAPE, generator=generator(2))
    sample = flow.corrupt(x_0, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(sample.x_t[0], x_0[0])
    torch.testing.assert_close(sample.x_t[1], noise[1])
    middle = flow.corrupt(x_0, noise, torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(flow.step(middle.x_t, middle.velocity, 0.3, 0.0)[0], x_0[0])


def test_training_times_follow_their_distribution():
    t = scheduler().sample_times((1000, 1, 4, 4, 4), generator())
    assert torch.histc(t, 10, 0, 1).tolist() == [100] * 10  # stratified
    t = scheduler(sample_method="logit_normal", logit_mean=1.0, logit_std=0.5).sample_times(
        (1000, 1, 4, 4, 4), generator()
    )
    logits = torch.logit(t.double())
    assert abs(logits.mean() - 1.0) < 0.01
    assert abs(logits.std() - 0.5) < 0.01


def test_larger_latents_are_shifted_towards_noise():
    flow = scheduler(use_timestep_transform=True)
    t = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(flow.shift(t, (32, 32, 32)), t)
    torch.testing.assert_close(flow.shift(t, (64, 64, 64)), torch.tensor([0.0, 2 / 3, 1.0]))
    assert flow.shift(t, (16, 16, 16))[1] < 0.5
    assert flow.times(7, (64, 64, 64))[0] == 1.0
    assert flow.times(7, (64, 64, 64))[-1] == 0.0


def test_a_sample_does_not_depend_on_its_neighbours():
    sampler = RectifiedFlowSampler(scheduler=scheduler(), steps=3)

    def velocity(x, t, c):
        return -x * c.label.view(-1, 1, 1, 1, 1)

    seeds = [generator(7), generator(8)]
    both = sampler.sample(velocity, SHAPE, condition(), seeds)
    second = sampler.sample(velocity, (1, *SHAPE[1:]), FlowCondition(torch.tensor([2])), [generator(8)])
    torch.testing.assert_close(both[1:], second, rtol=0, atol=0)


def test_guidance_extrapolates_inside_its_interval_only():
    calls = []

    def velocity(x, t, c):
        calls.append(len(x))
        return torch.ones_like(x) * (c.label > 0).float().view(-1, 1, 1, 1, 1)

    flow = scheduler()
    plain = RectifiedFlowSampler(scheduler=flow, steps=4)
    noise = draw_noise(SHAPE, generator())
    torch.testing.assert_close(
        plain.sample(velocity, SHAPE, condition(), generator()) - noise, torch.ones(SHAPE)
    )
    calls.clear()
    guided = RectifiedFlowSampler(scheduler=flow, steps=4, guidance_scale=2.0, guidance_interval=(0.25, 0.75))
    moved = guided.sample(velocity, SHAPE, condition(), generator()) - noise
    torch.testing.assert_close(moved, torch.full(SHAPE, 0.5 * 1 + 0.5 * 3))
    assert calls == [2, 4, 4, 2]


def test_the_callback_sees_every_step():
    seen = []
    sampler = RectifiedFlowSampler(scheduler=scheduler(), steps=3)
    sampler.sample(lambda x, t, c: x, SHAPE, condition(), generator(), callback=seen.append)
    assert [(s.step, s.steps) for s in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1].t == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"solver": "rk4"}, "solver: expected euler or heun, got 'rk4'"),
        ({"guidance_interval": (0.8, 0.2)}, "swap the two"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RectifiedFlowSampler(scheduler=scheduler(), **options)


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="sample_method: expected uniform or logit_normal"):
        scheduler(sample_method="cosine")
    with pytest.raises(ValueError, match="at least 1"):
        scheduler(base_size=0)
    with pytest.raises(ValueError, match=r"one per sample \(2\), got 1"):
        draw_noise(SHAPE, [generator()])
