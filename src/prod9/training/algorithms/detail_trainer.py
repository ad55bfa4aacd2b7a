"""Training of a detail flow: start at a soft volume and noise, end at the scan, with the noise that was asked for."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.detail.condition import DetailCondition
from prod9.detail.flow import Answer, DetailFlow
from prod9.measures.denoise import denoised
from prod9.measures.metrics import fit_intensities, foreground, psnr
from prod9.measures.noise import noise_level
from prod9.training.algorithms.base import AbstractAlgorithm, Losses
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Volume

_BORDER = 0.9
"""Voxels of a denoised scan with a steeper slope than this share of its brain are at borders of tissues."""


@dataclass(frozen=True)
class DetailPairs:
    """A batch of soft volumes and scans.

    Attributes:
        told: what the flow is told; its ``noise`` is that of the scans.
        scan: ``[B 1 H W D]`` in [0, 1].
        clean: the scans without their noise, as :func:`~prod9.measures.denoise.denoised` returns them.
        region: what is segmented, bool ``[B 1 H W D]``.
    """

    told: DetailCondition
    scan: Volume
    clean: Volume
    region: Bool[Tensor, "B 1 H W D"]


@dataclass(kw_only=True, eq=False)
class DetailTrainer(AbstractAlgorithm):
    """Losses and metrics of a detail flow; steps no optimizer and owns no network.

    The level of noise is a condition, so it has to vary: scans of a cohort are noisy alike. In a share of the samples
    the noise of the scan, which is what denoising takes from it, is multiplied by a random factor.

    Attributes:
        network: answers.
        flow: the line that it is trained on.
        steps: of the volumes that are measured.
        region_weight: weight of voxels in any segmented class; without segmentations no voxel is in one.
        level_share: share of samples whose scan gets another level of noise.
        max_level: the greatest factor of that noise; the least is 0.
    """

    network: Answer
    flow: DetailFlow
    steps: int = 4
    region_weight: float = 3.0
    level_share: float = 0.5
    max_level: float = 2.0

    def compute_losses(self, pairs: DetailPairs, *, generator: torch.Generator) -> Losses:
        """Return ``total`` and ``velocity``: the squared error of the velocity in the head, about 1 for no answer."""
        count, device = len(pairs.scan), generator.device
        shares = torch.rand(2, count, generator=generator, device=device).to(pairs.scan.device)
        factors = torch.where(shares[0] < self.level_share, self.max_level * shares[1], 1.0)
        loss = self._loss(self._leveled(pairs, factors), self._times(count, generator), generator)
        return {"total": loss, "velocity": loss.detach()}

    @torch.no_grad()
    def tally(self, pairs: DetailPairs, *, generator: torch.Generator) -> Tally:
        """Count means over the volumes of the set that show any brain, in the brain; the scan's level is asked for.

        ``loss`` of the scans as they are. ``psnr_fitted`` in dB after an affine fit of intensities, ``noise`` (the
        level over that of the scan) and ``edges`` (the slope at borders of tissues over that of the scan, both
        denoised), each of the flow in ``steps`` steps, with ``_1`` in one step, and with ``_soft`` of the soft volume.
        """
        scan, told = pairs.scan, pairs.told
        brain = foreground(scan)
        shown = brain.flatten(1).any(1)
        times = self._times(len(scan), generator)
        means = {"loss": mean_of(self._loss(pairs, times, generator), shown.sum())}
        clean = denoised(scan, brain)
        border = _border(clean, brain)
        slopes, level = _slope(clean, border), told.noise.clamp_min(1e-4)
        made = {
            "": self.flow.sample(self.network, told, self.steps, generator),
            "_1": self.flow.sample(self.network, told, 1, generator),
            "_soft": told.soft.float(),
        }
        for name, volume in made.items():
            volume = volume.clamp(0.0, 1.0)
            fitted = fit_intensities(volume, scan, mask=brain)
            means[f"psnr_fitted{name}"] = mean_of(psnr(fitted, scan, mask=brain), shown)
            means[f"noise{name}"] = mean_of(noise_level(volume, brain)[:, 0] / level, shown)
            means[f"edges{name}"] = mean_of(_slope(denoised(volume, brain), border) / slopes, shown)
        return Tally(means)

    def _leveled(self, pairs: DetailPairs, factors: Float[Tensor, " B"]) -> DetailPairs:
        """Return ``pairs`` with the noise of each scan multiplied, and told so."""
        noise = pairs.scan - pairs.clean
        scan = pairs.clean + factors.view(-1, 1, 1, 1, 1) * noise
        level = noise_level(scan, foreground(pairs.scan))[:, 0].nan_to_num(0.0)
        return replace(pairs, scan=scan, told=replace(pairs.told, noise=level))

    def _loss(self, pairs: DetailPairs, t: Tensor, generator: torch.Generator) -> Float[Tensor, ""]:
        told, scan = pairs.told, pairs.scan
        noise = torch.randn(scan.shape, generator=generator, device=generator.device).to(scan.device)
        drawn, wanted = self.flow.between(told, scan, noise, t)
        error = (self.flow.velocity(self.network, drawn, t, told) - wanted).square()
        weight = torch.where(pairs.region, self.region_weight, 1.0) * told.head
        return (error * weight).sum() / weight.sum().clamp_min(1.0) / self.flow.variance

    def _times(self, count: int, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Draw a time in [0, 1) for each sample, one from each of equal shares."""
        device = generator.device
        strata = torch.randperm(count, generator=generator, device=device)
        return (strata + torch.rand(count, generator=generator, device=device)) / count


def _border(clean: Volume, brain: Tensor) -> Bool[Tensor, "B 1 H W D"]:
    """Return where tissues meet in denoised scans: the steepest tenth of the brain, away from its surface."""
    inner = ~torch.nn.functional.max_pool3d((~brain).float(), 3, stride=1, padding=1).bool()
    steep = _gradient(clean)
    kept = [
        inside & (slopes > slopes[inside].quantile(_BORDER)) if inside.any() else inside
        for slopes, inside in zip(steep, inner, strict=True)
    ]
    return torch.stack(kept)


def _slope(volume: Volume, where: Tensor) -> Float[Tensor, " B"]:
    """Return the mean length of the gradient of each volume in ``where``; NaN where that is empty."""
    return (_gradient(volume) * where).flatten(1).sum(1) / where.flatten(1).sum(1)


def _gradient(volume: Volume) -> Volume:
    parts = torch.gradient(volume, dim=(2, 3, 4))
    return torch.stack(parts).square().sum(0).sqrt()
