"""RectifiedFlowSampler: from noise to a latent by integrating the velocity that a network predicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from prod9.autoencoder.checks import require_choice, require_finite, require_one_each
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.types import Latent

SOLVERS = ("euler", "heun")

Velocity = Callable[[Tensor, Tensor, FlowCondition], Tensor]
"""(x_t ``[B Z h w d]``, network times ``[B]``, condition) → velocity ``[B Z h w d]``, as DiffusionModelRF.predict."""

SteeredVelocity = Callable[[Tensor, Tensor, FlowCondition, ControlResiduals | None], Tensor]
"""The same with residuals of a control network or None."""

Residuals = Callable[[Tensor, Tensor, FlowCondition, Tensor], ControlResiduals]
"""(x_t, network times, condition, encoded control ``[B E h w d]``) → residuals, such as ControlNetRF.residuals."""


@dataclass(frozen=True)
class FlowState:
    """The argument of a callback: ``step`` of ``steps`` are done, and ``x_t`` is the latent at time ``t``."""

    step: int
    steps: int
    t: float
    x_t: Tensor


@dataclass(frozen=True)
class SourceStart:
    """Where a flow of translation starts: at the mean latent of the sources with a little noise.

    Attributes:
        origin: that mean ``[B Z h w d]``, in the scale of the network.
        noise: deviation of the noise on top; 0 gives one translation for all seeds.
    """

    origin: Tensor
    noise: float

    def at(self, noise: Tensor) -> Tensor:
        """Return the start that standard normal ``noise [B Z h w d]`` gives."""
        return self.origin.to(noise.device, noise.dtype) + self.noise * noise


class RectifiedFlowSampler:
    """Integrates a velocity from t = 1 to 0.

    Args:
        scheduler: that of training.
        steps: number of steps.
        solver: ``euler``, with one call of the network per step and an error of order 1 in the step length, or
            ``heun``, with two calls (an Euler step and its correction) and order 2.
        guidance_scale: factor of the difference between conditional and unconditional velocity that is added to the
            conditional one; 0 runs no second branch. MAISI's scale is larger by 1.
        guidance_interval: the share of the steps, ``[from, to)``, that is guided.
        autoguidance_scale: factor of the difference between this network's velocity and that of a weaker one, which is
            added too, on the same steps (arXiv 2406.02507); 0 needs no weaker one.

    Raises:
        ValueError: for fewer steps than one, an unknown solver, and an interval outside of 0 to 1.

    Example:
        >>> import torch
        >>> from prod9.diffusion.condition import FlowCondition
        >>> from prod9.diffusion.sampler import RectifiedFlowSampler
        >>> from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
        >>> sampler = RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=4, solver="heun")
        >>> condition, generator = FlowCondition(torch.tensor([1])), torch.Generator().manual_seed(0)
        >>> tuple(sampler.sample(lambda x_t, time, condition: -x_t, (1, 4, 8, 8, 8), condition, generator).shape)
        (1, 4, 8, 8, 8)
    """

    def __init__(
        self,
        *,
        scheduler: RectifiedFlowSchedulerRF,
        steps: int = 30,
        solver: str = "euler",
        guidance_scale: float = 0.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        autoguidance_scale: float = 0.0,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}; use for example 30")
        require_choice("solver", solver, SOLVERS)
        require_finite(guidance_scale=guidance_scale, autoguidance_scale=autoguidance_scale)
        start, end = float(guidance_interval[0]), float(guidance_interval[1])
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(
                f"guidance_interval: expected 0 <= from <= to <= 1, got {(start, end)}; swap the two"
            )
        self.scheduler = scheduler
        self.steps = steps
        self.solver = solver
        self.guidance_scale = guidance_scale
        self.guidance_interval = (start, end)
        self.autoguidance_scale = autoguidance_scale

    @property
    def evaluations(self) -> int:
        """Evaluations of networks per sample, each branch of guidance counted, without control."""
        start, end = self.guidance_interval
        guided = sum(start <= i / self.steps < end for i in range(self.steps))
        branches = (self.guidance_scale != 0.0) + (self.autoguidance_scale != 0.0)
        return (self.steps + guided * branches) * (2 if self.solver == "heun" else 1)

    @torch.no_grad()
    def sample(
        self,
        velocity: Velocity,
        shape: Sequence[int],
        condition: FlowCondition,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        callback: Callable[[FlowState], None] | None = None,
        weak: Velocity | None = None,
    ) -> Latent:
        """Return float32 latents of ``shape`` on the condition's device.

        They are in the scale of the network: divide them by the scale factor before decoding.

        Args:
            velocity: the network.
            shape: ``(B, Z, h, w, d)``.
            condition: of B samples.
            generator: one for the batch, or one per sample, so that a sample does not depend on its batch; on any
                device.
            callback: called after every step.
            weak: the weaker network of ``autoguidance_scale``; needed unless that is 0.
        """
        self._require(weak, condition, shape)
        condition = condition.in_steps(self.steps)

        def evaluate(x: Tensor, time: Tensor, guided: bool) -> Tensor:
            return self._guided(velocity, x, time, condition, guided, weak)

        return self._integrate(evaluate, shape, condition.device, generator, callback)

    @torch.no_grad()
    def sample_with_controlnet(
        self,
        velocity: SteeredVelocity,
        shape: Sequence[int],
        condition: FlowCondition,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        controlnet: Residuals,
        control: Tensor,
        control_strength: float = 1.0,
        control_guidance_scale: float = 0.0,
        start: SourceStart | None = None,
        callback: Callable[[FlowState], None] | None = None,
        weak: Velocity | None = None,
    ) -> Latent:
        """Return latents as :meth:`sample` does, steered by a control network.

        The unconditional branch of ``guidance_scale`` drops condition and control. The weaker network is compared with
        this one without control, which costs a further evaluation.

        Args:
            controlnet: computes the residuals at each step.
            control: the output ``[B E h w d]`` of ``ControlNetRF.encode``, the same for all steps.
            control_strength: factor of the residuals; 0 equals the base bit for bit, without calls of ``controlnet``.
            control_guidance_scale: factor of the difference between steered and base velocity that is added, inside of
                ``guidance_interval``.
            start: where the flow starts instead of at noise; the base alone (a strength of 0) always starts at noise.
            others: see :meth:`sample`.

        Raises:
            ValueError: for a negative ``control_strength``, NaN and infinity.
        """
        require_finite(control_strength=control_strength, control_guidance_scale=control_guidance_scale)
        if control_strength < 0:
            raise ValueError(
                f"control_strength: expected at least 0, got {control_strength}; 0 is the base alone"
            )
        if control_strength == 0:
            return self.sample(
                lambda x, t, c: velocity(x, t, c, None),
                shape,
                condition,
                generator,
                callback=callback,
                weak=weak,
            )
        self._require(weak, condition, shape)

        def evaluate(x: Tensor, time: Tensor, guided: bool) -> Tensor:
            residuals = controlnet(x, time, condition, control).scaled(control_strength)
            steered = velocity(x, time, condition, residuals).float()
            result = steered
            if guided and self.guidance_scale != 0.0:
                free = velocity(x, time, condition.unconditional(), None).float()
                result = result + self.guidance_scale * (steered - free)
            if guided and (control_guidance_scale != 0.0 or self.autoguidance_scale != 0.0):
                base = velocity(x, time, condition, None).float()
                result = result + control_guidance_scale * (steered - base)
                return self._away(weak, base, x, time, condition, result)
            return result

        return self._integrate(evaluate, shape, condition.device, generator, callback, start)

    def _integrate(
        self,
        evaluate: Callable[[Tensor, Tensor, bool], Tensor],
        shape: Sequence[int],
        device: torch.device,
        generator: torch.Generator | Sequence[torch.Generator],
        callback: Callable[[FlowState], None] | None,
        start: SourceStart | None = None,
    ) -> Tensor:
        """Follow ``evaluate(x_t, network times, guided)`` from noise, or from ``start``, to data."""
        x = draw_noise(shape, generator).to(device)
        x = x if start is None else start.at(x)
        lost = torch.zeros_like(x)
        times = self.scheduler.times(self.steps, shape[2:])
        first, end = self.guidance_interval
        for i, (t, t_next) in enumerate(pairwise(times)):
            guided = first <= i / self.steps < end
            v = evaluate(x, self._network_time(x, t), guided)
            if self.solver == "heun":
                ahead = self.scheduler.step(x, v, t, t_next)
                v = 0.5 * (v + evaluate(ahead, self._network_time(x, t_next), guided))
            x, lost = _advance(x, lost, (t - t_next) * v)
            if callback is not None:
                callback(FlowState(i + 1, self.steps, t_next, x))
        return x

    def _network_time(self, x: Tensor, t: float) -> Tensor:
        return self.scheduler.network_time(torch.full((len(x),), t, dtype=torch.float32, device=x.device))

    def _guided(
        self,
        velocity: Velocity,
        x: Tensor,
        time: Tensor,
        condition: FlowCondition,
        guided: bool,
        weak: Velocity | None,
    ) -> Tensor:
        if not guided:
            return velocity(x, time, condition).float()
        if self.guidance_scale == 0.0:
            v = result = velocity(x, time, condition).float()
        else:
            both = condition.cat(condition.unconditional())
            v, free = velocity(torch.cat([x, x]), torch.cat([time, time]), both).float().chunk(2)
            result = v + self.guidance_scale * (v - free)
        return self._away(weak, v, x, time, condition, result)

    def _away(
        self,
        weak: Velocity | None,
        strong: Tensor,
        x: Tensor,
        time: Tensor,
        condition: FlowCondition,
        result: Tensor,
    ) -> Tensor:
        """Return ``result`` with the scaled difference of ``strong`` to the weaker network's velocity added."""
        if weak is None or self.autoguidance_scale == 0.0:
            return result
        return result + self.autoguidance_scale * (strong - weak(x, time, condition).float())

    def _require(self, weak: Velocity | None, condition: FlowCondition, shape: Sequence[int]) -> None:
        require_one_each(condition, shape[0])
        if weak is None and self.autoguidance_scale != 0.0:
            raise ValueError(
                f"weak: expected a weaker network for autoguidance_scale {self.autoguidance_scale}, got None; pass "
                "one, or set the scale to 0"
            )


def _advance(x: Tensor, lost: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Return x + change and its rounding error, for the next call (Kahan's sum).

    Without it, a thousand short steps in float32 miss the end of a straight line by 2e-5.
    """
    change = change - lost
    moved = x + change
    return moved, (moved - x) - change


def draw_noise(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Return standard normal float32 noise of ``shape``, from one generator or from one per sample."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"generator: expected one, or one per sample ({shape[0]}), got {len(generator)}; pass as many"
        )
    return torch.stack([torch.randn(tuple(shape[1:]), generator=g, device=g.device) for g in generator])
