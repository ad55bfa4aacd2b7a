"""RectifiedFlowSampler: from noise to a latent by integrating the velocity that a network predicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.types import Latent

SOLVERS = ("euler", "heun")

Velocity = Callable[[Tensor, Tensor, FlowCondition], Tensor]
"""(x_t ``[B Z h w d]``, network times ``[B]``, condition) → velocity ``[B Z h w d]``, as DiffusionModelRF.predict."""

SteeredVelocity = Callable[[Tensor, Tensor, FlowCondition, ControlResiduals | None], Tensor]
"""The same with residuals of a control network, or None, as DiffusionModelRF.predict too."""

Residuals = Callable[[Tensor, Tensor, FlowCondition, Tensor], ControlResiduals]
"""(x_t, network times, condition, encoded control ``[B E h w d]``) → residuals, as ControlNetRF.residuals."""


@dataclass(frozen=True)
class FlowState:
    """How far a run is, for callbacks: ``step`` of ``steps`` are done, ``x_t`` is the latent at time ``t``."""

    step: int
    steps: int
    t: float
    x_t: Tensor


class RectifiedFlowSampler:
    """Integrates from t = 1 to 0 in ``steps`` steps.

    solver: ``euler``, one evaluation of the network a step and an error of order 1 in the step's length, or
    ``heun``, two (an Euler step and its correction at the far end) and order 2. guidance_scale: how far to go
    from the unconditional velocity beyond the conditional one, 0 runs no second branch (MAISI counts from the
    unconditional one: its scale is this plus 1). guidance_interval: the share of the steps [from, to) that is
    guided.
    """

    def __init__(
        self,
        *,
        scheduler: RectifiedFlowSchedulerRF,
        steps: int = 30,
        solver: str = "euler",
        guidance_scale: float = 0.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
        start, end = float(guidance_interval[0]), float(guidance_interval[1])
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(
                f"guidance_interval must be 0 <= from <= to <= 1, got {(start, end)}; swap the two."
            )
        self.scheduler = scheduler
        self.steps = steps
        self.solver = solver
        self.guidance_scale = guidance_scale
        self.guidance_interval = (start, end)

    @torch.no_grad()
    def sample(
        self,
        velocity: Velocity,
        shape: Sequence[int],
        condition: FlowCondition,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        callback: Callable[[FlowState], None] | None = None,
    ) -> Latent:
        """Return float32 latents of ``shape`` ``(B, Z, h, w, d)`` on the condition's device.

        generator: one for the batch, or one a sample, on any device: then a sample does not depend on those
        beside it. callback: called after every step. The latents are in the network's scale: divide by the
        scale factor before decoding.
        """

        def evaluate(x: Tensor, time: Tensor, guided: bool) -> Tensor:
            return self._guided(velocity, x, time, condition, guided)

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
        callback: Callable[[FlowState], None] | None = None,
    ) -> Latent:
        """Return latents as :meth:`sample` does, steered by a control network.

        control: the condition as ``ControlNetRF.encode`` returned it, once for all steps. control_strength: factor
        of the residuals; 0 is the base, bit for bit, and never calls the control network. control_guidance_scale:
        how far to go from the base's velocity beyond the steered one, where guidance applies; the unconditional
        branch of ``guidance_scale`` knows neither label nor control.
        """
        if control_strength < 0:
            raise ValueError(f"control_strength must be at least 0, got {control_strength}; 0 is the base.")
        if control_strength == 0:
            return self.sample(
                lambda x, t, c: velocity(x, t, c, None), shape, condition, generator, callback=callback
            )

        def evaluate(x: Tensor, time: Tensor, guided: bool) -> Tensor:
            residuals = controlnet(x, time, condition, control).scaled(control_strength)
            steered = velocity(x, time, condition, residuals).float()
            result = steered
            if guided and self.guidance_scale != 0.0:
                free = velocity(x, time, condition.unconditional(), None).float()
                result = result + self.guidance_scale * (steered - free)
            if guided and control_guidance_scale != 0.0:
                base = velocity(x, time, condition, None).float()
                result = result + control_guidance_scale * (steered - base)
            return result

        return self._integrate(evaluate, shape, condition.device, generator, callback)

    def _integrate(
        self,
        evaluate: Callable[[Tensor, Tensor, bool], Tensor],
        shape: Sequence[int],
        device: torch.device,
        generator: torch.Generator | Sequence[torch.Generator],
        callback: Callable[[FlowState], None] | None,
    ) -> Tensor:
        """Follow ``evaluate(x_t, network times, guided)`` from noise to data."""
        x = draw_noise(shape, generator).to(device)
        lost = torch.zeros_like(x)
        times = self.scheduler.times(self.steps, shape[2:])
        for i, (t, t_next) in enumerate(pairwise(times)):
            guided = self._is_guided(i)
            v = evaluate(x, self._network_time(x, t), guided)
            if self.solver == "heun":
                ahead = self.scheduler.step(x, v, t, t_next)
                v = 0.5 * (v + evaluate(ahead, self._network_time(x, t_next), guided))
            x, lost = _advance(x, lost, (t - t_next) * v)
            if callback is not None:
                callback(FlowState(i + 1, self.steps, t_next, x))
        return x

    def _is_guided(self, step: int) -> bool:
        start, end = self.guidance_interval
        return start <= step / self.steps < end

    def _network_time(self, x: Tensor, t: float) -> Tensor:
        return self.scheduler.network_time(torch.full((len(x),), t, dtype=torch.float32, device=x.device))

    def _guided(
        self, velocity: Velocity, x: Tensor, time: Tensor, condition: FlowCondition, guided: bool
    ) -> Tensor:
        if not guided or self.guidance_scale == 0.0:
            return velocity(x, time, condition).float()
        both = condition.cat(condition.unconditional())
        v, free = velocity(torch.cat([x, x]), torch.cat([time, time]), both).float().chunk(2)
        return v + self.guidance_scale * (v - free)


def _advance(x: Tensor, lost: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Return x + change, and what rounding took from it, to be given back at the next call (Kahan's sum).

    Without it a thousand short steps in float32 miss the end of a straight line by 2e-5.
    """
    change = change - lost
    moved = x + change
    return moved, (moved - x) - change


def draw_noise(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Return standard normal float32 noise of ``shape``, from one generator or from one a sample."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise ValueError(f"expected one generator or one a sample ({shape[0]}), got {len(generator)}.")
    return torch.stack([torch.randn(tuple(shape[1:]), generator=g, device=g.device) for g in generator])
