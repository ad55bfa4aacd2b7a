"""The losses of stage 3 of MAISI: velocities under control, and how much lesions change them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import SourceStart
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF, noise_like
from prod9.host_copies import on_host
from prod9.training.algorithms.base import weighted_mean
from prod9.training.algorithms.control_family import AbstractControlFamily, Measured
from prod9.training.algorithms.control_regions import region_of
from prod9.types import FlowSample

DISTANCES = {"l2": torch.square, "l1": torch.abs}


@dataclass(frozen=True)
class RegionContrast:
    """MAISI-v2's region contrast: removing the lesions from the condition must change them, and nothing else.

    Attributes:
        weight: λ before ``switch_step``.
        final_weight: λ from then on (the authors report that the reverse order fails).
        switch_step: training batches before the change.
        delta: change inside lesions that is enough, in units of the velocity.
        margin: positions around a lesion that belong neither to it nor to the rest.
        host_class: the class that takes the lesions' place.
    """

    weight: float = 0.01
    final_weight: float = 0.001
    switch_step: int = 0
    delta: float = 2.0
    margin: int = 1
    host_class: int = 0

    def weight_at(self, step: int) -> float:
        """Return λ at a training step."""
        return self.weight if step < self.switch_step else self.final_weight


@dataclass(frozen=True)
class FlowStep:
    """One training step, for the objectives.

    times: input of the networks, ``[B]``. velocity: under control. weights: of the positions ``[B h w d]``, 0 where the
    control is dropped.
    """

    sample: FlowSample
    times: Tensor
    condition: FlowCondition
    control: ControlCondition
    velocity: Tensor
    weights: Tensor


class FlowControl(AbstractControlFamily[FlowCondition, FlowStep]):
    """Corrupts latents, predicts their velocity under control, compares.

    Args:
        base: the frozen U-Net, in evaluation mode.
        controlnet: made from it.
        scheduler: of the base's training.
        objective: ``velocity``, the only one.
        distance: ``l2`` or ``l1`` between velocities.
        contrast: another term of the loss, where there is one.
        start_noise: deviation of the noise on top of ``control.origin``, where that is given. Samples whose control
            is dropped start at noise, as the base does.
    """

    def __init__(
        self,
        *,
        base: DiffusionModelRF,
        controlnet: ControlNetRF,
        scheduler: RectifiedFlowSchedulerRF,
        objective: str = "velocity",
        distance: str = "l2",
        contrast: RegionContrast | None = None,
        start_noise: float = 0.0,
    ) -> None:
        for name, value, known in (
            ("objective", objective, ("velocity",)),
            ("distance", distance, tuple(DISTANCES)),
        ):
            if value not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {value!r}; use one of these."
                )
        self.base = base
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.objective = objective
        self.distance = DISTANCES[distance]
        self.contrast_settings = contrast
        self.start_noise = start_noise

    def step(
        self,
        target: Tensor,
        condition: FlowCondition,
        control: ControlCondition,
        weights: Tensor,
        generator: torch.Generator,
    ) -> FlowStep:
        """Put latents somewhere between data and noise, and predict their velocity.

        Args:
            target: latents ``[B Z h w d]``.
            condition: of the base.
            control: what steers.
            weights: of the positions in the loss, ``[B h w d]``.
            generator: draws times and noise.
        """
        sample, times = self._corrupt(target, control, generator)
        velocity = self._controlled(sample, times, condition, control)
        known = (~control.is_dropped).float().view(-1, 1, 1, 1)
        return FlowStep(sample, times, condition, control, velocity, weights * known)

    def _corrupt(
        self, x_0: Tensor, control: ControlCondition, generator: torch.Generator
    ) -> tuple[FlowSample, Tensor]:
        t = self.scheduler.sample_times(x_0.shape, generator).to(x_0.device)
        noise = noise_like(x_0, generator)
        if control.origin is not None:
            start = SourceStart(control.origin, self.start_noise).at(noise)
            noise = torch.where(control.is_dropped.view(-1, 1, 1, 1, 1), noise, start)
        return self.scheduler.corrupt(x_0, noise, t), self.scheduler.network_time(t)

    def _controlled(
        self, sample: FlowSample, times: Tensor, condition: FlowCondition, control: ControlCondition
    ) -> Tensor:
        encoded = self.controlnet.encode(control)
        residuals = self.controlnet.residuals(sample.x_t, times, condition, encoded)
        return self.base.predict(sample.x_t, times, condition, residuals).float()

    def anchor(self, step: FlowStep) -> Tensor:
        """Squared distance to the base where the control is dropped: there it has nothing to add."""
        dropped = step.control.is_dropped
        # Few samples are dropped, often none.
        if not on_host(dropped).any():
            return step.velocity.sum() * 0.0
        with torch.no_grad():
            base = self.base.predict(step.sample.x_t, step.times, step.condition).float()
        # By weight, not by index: their number would be a second wait for the device.
        return weighted_mean((step.velocity - base).square().flatten(1).mean(1), dropped.float())

    def measure(
        self, target: Tensor, condition: FlowCondition, control: ControlCondition, generator: torch.Generator
    ) -> Measured:
        """Return the ``loss`` of each position with and without control.

        Args:
            target: latents ``[B Z h w d]``.
            condition: of the base.
            control: what steers.
            generator: draws times and noise.
        """
        sample, times = self._corrupt(target, control, generator)
        predicted = {
            "": self._controlled(sample, times, condition, control),
            "_base": self.base.predict(sample.x_t, times, condition).float(),
        }
        values = {
            ("loss", suffix): self._errors(velocity, sample).flatten()
            for suffix, velocity in predicted.items()
        }
        return Measured(torch.arange(values["loss", ""].numel(), device=target.device), values)

    def _errors(self, velocity: Tensor, sample: FlowSample) -> Float[Tensor, "B h w d"]:
        return self.distance(velocity - sample.velocity.float()).mean(1)

    def loss(self, step: FlowStep) -> Tensor:
        """Return the objective."""
        return self.velocity(step)

    def extra_terms(self, step: FlowStep, index: int) -> dict[str, tuple[float, Tensor]]:
        """Return the region contrast, where there is one."""
        settings = self.contrast_settings
        return {} if settings is None else {"contrast": (settings.weight_at(index), self.contrast(step))}

    # -- objectives -----------------------------------------------------------------------------------

    def velocity(self, step: FlowStep) -> Tensor:
        """Distance of the controlled velocity to the true one, lesions weighing more."""
        return weighted_mean(self._errors(step.velocity, step.sample).flatten(), step.weights.flatten())

    def contrast(self, step: FlowStep) -> Tensor:
        """Change of the velocity without the lesions in the condition: it should be large inside them, 0 outside.

        Costs a second pass of both networks. 0 where no sample of the batch has a lesion.
        """
        settings, seg = self.contrast_settings, step.control.seg
        grid = tuple(step.velocity.shape[2:])
        inside = region_of(step.control, grid, margin=0)
        if settings is None or seg is None or inside is None:
            return step.velocity.sum() * 0.0
        host = replace(step.control, seg=seg.masked_fill(seg > 0, settings.host_class))
        without = self._controlled(step.sample, step.times, step.condition, host)
        change = (step.velocity - without).abs().mean(1).flatten()
        near = region_of(step.control, grid, margin=settings.margin)
        assert near is not None  # as inside
        ill = inside.flatten(1).any(1).float().view(-1, 1, 1, 1)
        in_lesions = weighted_mean(change, inside.flatten().float())
        elsewhere = weighted_mean(change, (~near * ill).flatten())
        return elsewhere - in_lesions.clamp_max(settings.delta)
