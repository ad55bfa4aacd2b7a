"""RectifiedFlowSchedulerRF: straight lines from data to noise, and steps back along them.

Rectified flow (Liu et al., arXiv 2209.03003) in the convention of MAISI and MONAI, on which released weights were
trained: time t is 0 for data and 1 for noise, and the velocity points from noise to data, ``x_0 − noise``. A step from
t to an earlier time adds ``(t − t_next) · velocity``.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from prod9.autoencoder.checks import require_choice, require_finite
from prod9.diffusion.diffusion_model import (
    DiffusionModelRF as DiffusionModelRF,  # where the spec looks for it
)
from prod9.types import FlowSample, Latent, Time

SAMPLE_METHODS = ("uniform", "logit_normal")


class RectifiedFlowSchedulerRF:
    """Times, corruption and steps of a rectified flow.

    Args:
        num_train_timesteps: the network gets ``t · num_train_timesteps``.
        sample_method: distribution of training times, ``uniform`` or ``logit_normal``, with more times in the middle.
        logit_mean: mean of the normal distribution of ``logit_normal``.
        logit_std: its standard deviation.
        use_timestep_transform: shift all times towards noise for latents of more than ``base_size`` voxels, since the
            same noise hides less of a larger volume, and towards data for smaller ones: t' = ρt / (1 + (ρ − 1)t) with
            ρ = transform_scale · (voxels / base_size)^⅓.
        transform_scale: see ``use_timestep_transform``.
        base_size: see ``use_timestep_transform``.

    Raises:
        ValueError: for numbers below 1, or scales and deviations not above 0.

    Example:
        >>> import torch
        >>> from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
        >>> scheduler = RectifiedFlowSchedulerRF()
        >>> scheduler.times(4, (8, 8, 8))
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> x_0, noise = torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)
        >>> scheduler.corrupt(x_0, noise, torch.tensor([0.25])).x_t.unique().tolist()
        [0.75]
    """

    def __init__(
        self,
        *,
        num_train_timesteps: int = 1000,
        sample_method: str = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        use_timestep_transform: bool = False,
        transform_scale: float = 1.0,
        base_size: int = 32**3,
    ) -> None:
        require_choice("sample_method", sample_method, SAMPLE_METHODS)
        require_finite(logit_mean=logit_mean, logit_std=logit_std, transform_scale=transform_scale)
        if num_train_timesteps < 1 or transform_scale <= 0 or base_size < 1 or logit_std <= 0:
            raise ValueError(
                "num_train_timesteps, base_size: expected at least 1; transform_scale, logit_std: above 0; "
                f"got {num_train_timesteps}, {base_size}, {transform_scale} and {logit_std}; correct these"
            )
        self.num_train_timesteps = num_train_timesteps
        self.sample_method = sample_method
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.use_timestep_transform = use_timestep_transform
        self.transform_scale = transform_scale
        self.base_size = base_size

    def sample_times(self, shape: Sequence[int], generator: torch.Generator) -> Time:
        """Draw a training time in [0, 1] for each sample of ``shape`` ``(B, Z, h, w, d)``.

        Stratified over the batch: one time from each of B equal shares of the distribution.
        """
        count, device = shape[0], generator.device
        strata = torch.randperm(count, generator=generator, device=device)
        t = (strata + torch.rand(count, generator=generator, device=device)) / count
        if self.sample_method == "logit_normal":
            t = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(t.double())).float()
        return self.shift(t, shape[2:])

    def shift(self, t: Tensor, sides: Sequence[int]) -> Tensor:
        """Return the shifted times ``[B]`` for a latent of ``sides`` ``(h, w, d)``; 0 and 1 do not change."""
        if not self.use_timestep_transform:
            return t
        ratio = self.transform_scale * (prod(sides) / self.base_size) ** (1 / 3)
        return ratio * t / (1 + (ratio - 1) * t)

    def times(self, steps: int, sides: Sequence[int]) -> list[float]:
        """Return the ``steps + 1`` times of a sampling run, from 1 to 0, for a latent of ``sides``.

        Raises ValueError for fewer steps than one.
        """
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}; use for example 30")
        # float64: steps between rounded times would not add up to 1, and the sample would miss the data.
        even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        return self.shift(even, sides).tolist()

    def network_time(self, t: Time) -> Time:
        """Return the input of the network for time ``t``."""
        return t * self.num_train_timesteps

    def corrupt(self, x_0: Latent, noise: Latent, t: Time) -> FlowSample:
        """Return the point at time ``t`` between data and noise, and the velocity ``x_0 − noise`` there."""
        weight = t.to(x_0.dtype).view(-1, 1, 1, 1, 1)
        return FlowSample(torch.lerp(x_0, noise, weight), x_0 - noise)

    def step(self, x_t: Latent, velocity: Latent, t: float, t_next: float) -> Latent:
        """Follow ``velocity`` from time ``t`` to ``t_next``; to ``t_next = 0`` this is the predicted data.

        Args:
            x_t: ``[B Z h w d]`` at time ``t``.
            velocity: there, of the same shape.
            t: in [0, 1]; 1 is noise.
            t_next: in [0, ``t``].
        """
        return x_t + (t - t_next) * velocity


def noise_like(x_0: Latent, generator: torch.Generator) -> Latent:
    """Return standard normal noise of the shape of ``x_0``; it does not depend on the memory layout of ``x_0``."""
    noise = torch.randn(x_0.shape, generator=generator, device=generator.device, dtype=x_0.dtype)
    return noise.to(x_0.device)
