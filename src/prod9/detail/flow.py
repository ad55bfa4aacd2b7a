"""DetailFlow: straight lines from a soft volume with a little noise to the scan.

Posterior-mean rectified flow (Ohayon et al., arXiv 2410.00418): the volume with the least squared error is soft; a
flow that starts at it and a little noise, and ends at scans, adds the detail that the mean lacks. Time t is 0 at the
soft volume and 1 at the scan, and the velocity points to the scan. Between the two, the network only has to answer
what a linear estimate leaves open (preconditioning as in Karras et al., arXiv 2206.00364): near the end, where little
is left to draw, its own errors hardly count, which would otherwise look like grain.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.autoencoder.checks import require_finite
from prod9.detail.condition import DetailCondition
from prod9.diffusion.sampler import draw_noise
from prod9.types import Time, Volume

Answer = Callable[[Tensor, Tensor, DetailCondition], Tensor]
"""(what is drawn, time, condition) → answer ``[B 1 H W D]``, as ``DetailNetwork.forward``."""


class DetailFlow:
    """The line from a soft volume to a scan, and steps along it.

    With the detail r = scan − soft of deviation ``residual``, and the start noise s · ε, the volume at time t is
    soft + d with d = (1 − t) s ε + t r, of variance D = (1 − t)² s² + t² residual². The velocity r − s ε is estimated
    as (t residual² − (1 − t) s²) / D · d + s · residual / √D · answer: the first part is the best linear guess from d
    and the second has the deviation that this guess leaves.

    Args:
        start_noise: standard deviation s of the noise that is added to the soft volume.
        residual: usual deviation of a scan from its soft volume, in the head.

    Example:
        >>> import torch
        >>> from prod9.detail.condition import DetailCondition
        >>> from prod9.detail.flow import DetailFlow
        >>> flow, soft = DetailFlow(start_noise=0.05, residual=0.05), torch.full((1, 1, 4, 4, 4), 0.5)
        >>> told = DetailCondition(soft, torch.tensor([0]), torch.tensor([0.0]), soft > 0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> # A network that knows nothing leaves the soft volume as it is.
        >>> flow.sample(lambda drawn, time, told: torch.zeros_like(drawn), told, 1, generator).unique().tolist()
        [0.5]
    """

    def __init__(self, *, start_noise: float = 0.05, residual: float = 0.05) -> None:
        require_finite(start_noise=start_noise, residual=residual)
        if start_noise <= 0 or residual <= 0:
            raise ValueError(
                f"start_noise, residual: expected above 0, got {start_noise} and {residual}; use 0.05 for both"
            )
        self.start_noise = start_noise
        self.residual = residual

    @property
    def variance(self) -> float:
        """Variance of the velocity; the loss of a network that knows nothing is about 1 in this unit."""
        return self.start_noise**2 + self.residual**2

    def between(
        self, condition: DetailCondition, scan: Volume, noise: Volume, t: Time
    ) -> tuple[Tensor, Tensor]:
        """Return what is drawn at time ``t`` on the way to ``scan``, and the velocity there; 0 outside of the head.

        Args:
            condition: of the samples.
            scan: ``[B 1 H W D]`` in [0, 1].
            noise: standard normal, of the same shape.
            t: ``[B]`` in [0, 1].
        """
        detail = scan - condition.soft
        start = self.start_noise * noise
        drawn = torch.lerp(start, detail, t.view(-1, 1, 1, 1, 1).to(detail.dtype))
        return torch.where(condition.head, drawn, 0.0), torch.where(condition.head, detail - start, 0.0)

    def velocity(
        self, network: Answer, drawn: Volume, t: Time, condition: DetailCondition
    ) -> Float[Tensor, "B 1 H W D"]:
        """Return the velocity, float32, at time ``t``.

        Args:
            network: predicts it.
            drawn: ``[B 1 H W D]``, what is drawn so far.
            t: ``[B]`` in [0, 1].
            condition: of the samples.
        """
        time = t.view(-1, 1, 1, 1, 1).float()
        s2, r2 = self.start_noise**2, self.residual**2
        spread = ((1 - time) ** 2 * s2 + time**2 * r2).sqrt()
        answer = network(drawn / spread, t, condition).float()
        guess = (time * r2 - (1 - time) * s2) / spread**2 * drawn
        return guess + self.start_noise * self.residual / spread * answer

    @torch.no_grad()
    def sample(
        self,
        network: Answer,
        condition: DetailCondition,
        steps: int,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> Float[Tensor, "B 1 H W D"]:
        """Return sharp volumes, float32 and not clipped, 0 outside of the head.

        Args:
            network: answers.
            condition: what it is told, of B samples.
            steps: Euler steps, each one call of the network.
            generator: one for the batch, or one per sample, so that a sample does not depend on its batch; on any
                device.
        """
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}; use for example 4")
        soft = condition.soft.float()
        noise = self.start_noise * draw_noise(soft.shape, generator).to(soft.device)
        drawn = torch.where(condition.head, noise, 0.0)
        for step in range(steps):
            t = torch.full((len(soft),), step / steps, device=soft.device)
            drawn = drawn + self.velocity(network, drawn, t, condition) / steps
        return torch.where(condition.head, soft + drawn, 0.0)
