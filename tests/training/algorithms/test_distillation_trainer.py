"""Shortcuts against closed forms: straight flows, and Gaussians, whose steps of any length are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.training.algorithms.distillation_trainer import DistillationTrainer, Segments, Teacher

X = torch.randn(6, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
CONDITION = FlowCondition(torch.arange(1, 7), torch.ones(6, 3))
SIGMA = 0.5
"""Deviation of the data of the Gaussian flow."""


def spread(t):
    """Return the deviation of x_t between N(0, σ²) and N(0, 1), by which a path of the flow grows."""
    return (((1 - t) * SIGMA) ** 2 + t**2).sqrt()


def gaussian_velocity(x, time, condition):
    """Return the velocity of the flow between N(0, σ²) and N(0, 1)."""
    t = (time / 1000).view(-1, 1, 1, 1, 1)
    return ((1 - t) * SIGMA**2 - t) / spread(t) ** 2 * x


class ExactStudent:
    """Knows the mean velocity over each step of the Gaussian flow."""

    def predict(self, x_t, timesteps, condition):
        t = (timesteps / 1000).view(-1, 1, 1, 1, 1)
        step = (1.0 / condition.steps).view(-1, 1, 1, 1, 1)
        # Where a path is at t − d: each path keeps its place among the others.
        return (x_t * spread((t - step).clamp_min(0)) / spread(t) - x_t) / step


class Blank:
    """Predicts no motion."""

    def predict(self, x_t, timesteps, condition):
        return torch.zeros_like(x_t)


def teacher(velocity=gaussian_velocity, **options):
    sampler = RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), **({"steps": 64} | options))
    return Teacher(velocity=velocity, sampler=sampler)


def trainer(network, *, num_step_sizes=3, **options):
    return DistillationTrainer(
        network=network, scheduler=RectifiedFlowSchedulerRF(), num_step_sizes=num_step_sizes, **options
    )


def generator():
    return torch.Generator().manual_seed(1)


def test_the_exact_student_has_no_loss_and_reaches_the_teacher_in_any_number_of_steps():
    algorithm = trainer(ExactStudent(), teacher=teacher(steps=128, solver="heun"))
    assert algorithm.compute_losses(X, CONDITION, generator=generator())["total"] < 1e-5
    metrics = algorithm.compute_metrics(X, CONDITION, generator=generator())
    assert set(metrics) == {"loss", "loss_in_1", "loss_in_2", "loss_in_4"}
    assert all(value < 1e-5 for value in metrics.values())


@given(level=st.integers(0, 1), place=st.floats(0, 0.999))
def test_two_exact_halves_are_the_exact_whole(level, place):
    """The self-consistency of shortcuts holds for the true flow at every step."""
    steps = torch.full((6,), 2**level)
    segments = Segments(steps, 1.0 - torch.full((6,), math.floor(place * 2**level)) / steps)
    algorithm = trainer(ExactStudent())
    target = algorithm.targets(X, CONDITION, segments)
    wanted = ExactStudent().predict(X, segments.start * 1000, CONDITION.in_steps(steps))
    torch.testing.assert_close(target, wanted, atol=1e-5, rtol=1e-5)


def test_a_straight_flow_is_its_own_student():
    """Along straight lines the velocity is the mean over any step: 1 step equals 30."""

    def straight(x, time, condition):
        return (2.0 - x) / (time / 1000).view(-1, 1, 1, 1, 1)

    class Straight:
        predict = staticmethod(straight)

    algorithm = trainer(Straight(), teacher=teacher(straight, steps=30))
    assert algorithm.compute_losses(X, CONDITION, generator=generator())["total"] < 1e-8
    assert algorithm.compute_metrics(X, CONDITION, generator=generator())["loss_in_1"] < 1e-8


def test_guidance_is_part_of_the_target():
    """The student's target is the guided velocity inside of the interval, and the plain one outside."""

    def by_label(x, time, condition):
        return condition.label.view(-1, 1, 1, 1, 1).float().expand_as(x)

    algorithm = trainer(
        Blank(),
        num_step_sizes=3,
        teacher=teacher(by_label, steps=8, guidance_scale=1.5, guidance_interval=(0.0, 0.5)),
    )
    segments = Segments(torch.full((6,), 4), torch.tensor([1.0, 0.75, 0.5, 0.25, 1.0, 0.5]))
    target = algorithm.targets(X, CONDITION, segments)[:, 0, 0, 0, 0]
    torch.testing.assert_close(target, torch.tensor([2.5, 5.0, 3.0, 4.0, 12.5, 6.0]))


def test_a_batch_holds_every_length_and_only_true_starts():
    segments = trainer(Blank()).draw_segments(300, generator())
    counts = torch.bincount(segments.steps)[[1, 2, 4]]
    assert counts.tolist() == [100, 100, 100]
    places = (1.0 - segments.start) * segments.steps
    assert torch.equal(places, places.round())
    assert places.min() == 0
    assert bool((places < segments.steps).all())


def test_a_student_without_a_teacher_says_so():
    with pytest.raises(ValueError, match="teacher: expected the flow that is distilled"):
        trainer(Blank()).compute_losses(X, CONDITION, generator=generator())
