"""Distillation of a rectified flow to a few steps, by shortcuts (Frans et al., arXiv 2410.12557).

The student is told the number of steps of its sampling run and predicts the mean velocity over its next step. For the
shortest step that is the mean velocity of the frozen teacher, which is followed in several steps with its guidance. For
every other step it is the mean of the student's own next two steps of half the length, without gradient.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.sampler import RectifiedFlowSampler, Velocity
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF, noise_like
from prod9.diffusion.segments import SegmentVelocity, follow, guided_velocity
from prod9.host_copies import host_generator, on_host, placed
from prod9.training.algorithms.base import AbstractAlgorithm, Losses
from prod9.training.algorithms.diffusion_trainer import DISTANCES, VelocityNetwork
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Latent


@dataclass(kw_only=True, eq=False)
class Teacher:
    """A frozen flow and the sampler whose result is to be learned.

    Attributes:
        velocity: of the network.
        sampler: its steps, solver and guidance.
    """

    velocity: Velocity
    sampler: RectifiedFlowSampler

    def carry(
        self, x: Latent, condition: FlowCondition, *, start: Tensor, length: float, steps: int
    ) -> Latent:
        """Return ``x`` carried from the shares ``start`` to ``start − length`` in ``steps`` steps.

        Args:
            x: ``[B Z h w d]``.
            condition: of the samples.
            start: ``[B]``, shares of the way in [0, 1].
            length: of the way.
            steps: how many.
        """
        return follow(
            guided_velocity(self.sampler, self.velocity, condition),
            self.sampler.scheduler,
            x,
            start=start,
            length=length,
            steps=steps,
            solver=self.sampler.solver,
        )

    def finish(self, noise: Latent, condition: FlowCondition) -> Latent:
        """Return the teacher's sample from ``noise``."""
        start = torch.ones(len(noise), device=noise.device)
        return self.carry(noise, condition, start=start, length=1.0, steps=self.sampler.steps)


@dataclass(frozen=True)
class Segments:
    """Steps of sampling runs, one per sample: ``steps [B]`` of the run, and the share ``start [B]`` left before it."""

    steps: Tensor
    start: Tensor


@dataclass(kw_only=True, eq=False)
class DistillationTrainer(AbstractAlgorithm):
    """Losses and metrics of a student of a flow; steps no optimizer and owns no network.

    Latents come scaled to a deviation of 1. The label of no sample is hidden: guidance is the teacher's.

    Attributes:
        network: the student, which reads ``condition.steps``.
        scheduler: of the teacher's flow.
        num_step_sizes: the student samples in 1, 2, 4, … steps, in all so many numbers.
        distance: ``l2`` or ``l1`` between mean velocities.
        teacher: None until it is known.
    """

    network: VelocityNetwork
    scheduler: RectifiedFlowSchedulerRF
    num_step_sizes: int
    distance: str = "l2"
    teacher: Teacher | None = field(default=None)

    @property
    def known_steps(self) -> tuple[int, ...]:
        """The numbers of steps that the student samples in."""
        return tuple(2**k for k in range(self.num_step_sizes))

    def compute_losses(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Losses:
        """Return ``total`` and ``velocity``, means over the latent values of the batch."""
        segments = self.draw_segments(len(x_0), generator)
        t = self.scheduler.shift(segments.start, x_0.shape[2:])
        x_t = self.scheduler.corrupt(x_0, noise_like(x_0, generator), t).x_t
        target = self.targets(x_t, condition, segments)
        predicted = self.network.predict(
            x_t, self.scheduler.network_time(t), condition.in_steps(segments.steps)
        )
        loss = DISTANCES[self.distance](predicted.float(), target)
        return {"total": loss, "velocity": loss.detach()}

    def draw_segments(self, count: int, generator: torch.Generator) -> Segments:
        """Draw a step for each of ``count`` samples; a batch holds all lengths in equal shares."""
        drawing = host_generator(generator)
        first = torch.randint(self.num_step_sizes, (1,), generator=drawing)
        level = (torch.randperm(count, generator=drawing) + first) % self.num_step_sizes
        steps = torch.pow(2, level)
        done = (torch.rand(count, generator=drawing) * steps).floor()
        return Segments(*(placed(drawn, generator.device) for drawn in (steps, 1.0 - done / steps)))

    @torch.no_grad()
    def targets(self, x_t: Latent, condition: FlowCondition, segments: Segments) -> Tensor:
        """Return the mean velocity over each step: of the teacher for the shortest, else of the student's halves."""
        end = torch.empty_like(x_t, dtype=torch.float32)
        shortest = on_host(segments.steps) == self.known_steps[-1]
        for own, carry in ((shortest, self._by_teacher), (~shortest, self._by_halves)):
            where = placed(own.nonzero()[:, 0], x_t.device)
            if len(where):
                part = Segments(segments.steps[where], segments.start[where])
                end[where] = carry(x_t[where], condition[where], part)
        sides = x_t.shape[2:]
        t, t_next = (
            self.scheduler.shift(share, sides) for share in (segments.start, _next(segments).clamp_min(0.0))
        )
        return (end - x_t.float()) / (t - t_next).view(-1, 1, 1, 1, 1)

    def _by_teacher(self, x: Tensor, condition: FlowCondition, part: Segments) -> Tensor:
        teacher, most = self._teacher, self.known_steps[-1]
        steps = -(-teacher.sampler.steps // most)
        return teacher.carry(x, condition, start=part.start, length=1.0 / most, steps=steps)

    def _by_halves(self, x: Tensor, condition: FlowCondition, part: Segments) -> Tensor:
        velocity = self._student(condition.in_steps(2 * part.steps))
        return follow(velocity, self.scheduler, x, start=part.start, length=1.0 / part.steps, steps=2)

    def _student(self, condition: FlowCondition) -> SegmentVelocity:
        def velocity(x: Tensor, t: Tensor, share: Tensor) -> Tensor:
            del share
            return self.network.predict(x, self.scheduler.network_time(t), condition).float()

        return velocity

    @property
    def _teacher(self) -> Teacher:
        if self.teacher is None:
            raise ValueError("teacher: expected the flow that is distilled, got None; set it first.")
        return self.teacher

    @torch.no_grad()
    def tally(self, x_0: Latent, condition: FlowCondition, *, generator: torch.Generator) -> Tally:
        """Count the squared distance of the student's samples to the teacher's from the same noise.

        ``loss_in_1``, ``loss_in_2`` and so on by the number of steps, ``loss`` their mean. Put the network into
        evaluation mode first.
        """
        noise = noise_like(x_0, generator)
        wanted = self._teacher.finish(noise, condition)
        start, samples = torch.ones(len(noise), device=noise.device), x_0.new_tensor(float(len(x_0)))
        losses = {}
        for steps in self.known_steps:
            made = follow(
                self._student(condition.in_steps(steps)),
                self.scheduler,
                noise,
                start=start,
                length=1.0,
                steps=steps,
            )
            losses[f"loss_in_{steps}"] = (made - wanted).square().mean()
        losses["loss"] = torch.stack(list(losses.values())).mean()
        return Tally({name: mean_of(value, samples) for name, value in losses.items()})


def _next(segments: Segments) -> Tensor:
    return segments.start - 1.0 / segments.steps
