"""Parts of a sampling run: from any share of the path to an earlier one, each sample from its own.

The *share* of a path that is left is 1 at the noise and 0 at the data, and falls by the same amount with each step of a
sampler. Its time is ``scheduler.shift(share)``, which is the share itself without a timestep transform.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.sampler import RectifiedFlowSampler, Velocity
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.host_copies import is_known, on_host
from prod9.types import Latent

_SAME_SHARE = 1e-6
"""Shares that differ by less are the same: 1 − 0.6 is not 0.4 in floating point."""

SegmentVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, times ``[B]``, shares left ``[B]``) → velocity."""


def guided_velocity(
    sampler: RectifiedFlowSampler, network: Velocity, condition: FlowCondition
) -> SegmentVelocity:
    """Return the velocity that ``sampler`` would follow at any share: guided inside of its interval."""
    start, end = sampler.guidance_interval
    scale = sampler.guidance_scale

    def velocity(x: Tensor, t: Tensor, share: Tensor) -> Tensor:
        time, done = sampler.scheduler.network_time(t), 1.0 - share
        result = network(x, time, condition).float()
        guided = (done > start - _SAME_SHARE) & (done < end - _SAME_SHARE)
        # Without guidance in any sample the second branch is skipped, unless that means waiting for the device.
        if scale == 0.0 or (is_known(guided) and not bool(on_host(guided).any())):
            return result
        free = network(x, time, condition.unconditional()).float()
        weight = (scale * guided.float()).view(-1, 1, 1, 1, 1)
        return result + weight * (result - free)

    return velocity


@torch.no_grad()
def follow(
    velocity: SegmentVelocity,
    scheduler: RectifiedFlowSchedulerRF,
    x: Latent,
    *,
    start: Tensor,
    length: Tensor | float,
    steps: int,
    solver: str = "euler",
) -> Latent:
    """Return ``x`` carried from the share ``start`` to ``start − length``.

    Args:
        velocity: see :data:`SegmentVelocity`.
        scheduler: of the flow.
        x: ``[B Z h w d]``.
        start: shares left, ``[B]`` in (0, 1].
        length: shares to go, ``[B]`` or one for all.
        steps: equal steps in which to go.
        solver: ``euler`` or ``heun``.
    """
    sides = x.shape[2:]
    for i in range(steps):
        share, following = start - length * (i / steps), start - length * ((i + 1) / steps)
        following = following.clamp_min(0.0)
        t, t_next = scheduler.shift(share, sides), scheduler.shift(following, sides)
        step = (t - t_next).view(-1, 1, 1, 1, 1)
        v = velocity(x, t, share)
        if solver == "heun":
            # Guidance belongs to a step, so the correction is guided as its first half is.
            v = 0.5 * (v + velocity(x + step * v, t_next, share))
        x = x + step * v
    return x
