"""Refiner training: from a decoded translation and its sources towards the scan that was held back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.training.metrics import fit_intensities, foreground, psnr, ssim3d
from prod9.types import Label, Volume

RefinerNetwork = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(decoded, sources, present, target_label) → refined; see ``Refiner.forward``."""


@dataclass(frozen=True)
class RefinerInputs:
    """A batch of what a refiner reads.

    decoded: ``[B 1 H W D]``. sources: ``[B K H W D]``, channel k of class k. present: bool ``[B K]``.
    target_label: int64 ``[B]``. Intensities are in [0, 1].
    """

    decoded: Volume
    sources: Float[Tensor, "B K H W D"]
    present: Bool[Tensor, "B K"]
    target_label: Label

    def without_decoded(self, where: Bool[Tensor, " B"] | None = None) -> "RefinerInputs":
        """Return the batch with the decoded target zeroed, in the samples of ``where`` or in all."""
        if where is None:
            return replace(self, decoded=torch.zeros_like(self.decoded))
        return replace(self, decoded=torch.where(where[:, None, None, None, None], 0.0, self.decoded))


class RefinerTrainer:
    """Losses and metrics of a refiner; steps no optimizer and owns no network.

    reconstruction: distance to the target. background_weight: of voxels outside the target's brain in it.
    fit_weight: of the squared distance over the brain that is left after the best affine map of intensities: it
    asks for contrast between tissues, whatever the brightness of the scan. decoded_dropout: share of samples
    trained with the decoded target zeroed, so that what it contributes can be told apart.
    """

    def __init__(
        self,
        *,
        refiner: RefinerNetwork,
        reconstruction: Literal["l1", "l2"] = "l2",
        background_weight: float = 0.1,
        fit_weight: float = 4.0,
        decoded_dropout: float = 0.25,
    ) -> None:
        self.refiner = refiner
        self.reconstruction = reconstruction
        self.background_weight = background_weight
        self.fit_weight = fit_weight
        self.decoded_dropout = decoded_dropout

    def refine(self, inputs: RefinerInputs) -> Volume:
        """Return the refined targets, not clipped."""
        return self.refiner(inputs.decoded, inputs.sources, inputs.present, inputs.target_label)

    def compute_losses(
        self, inputs: RefinerInputs, target: Volume, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return ``total``, ``reconstruction`` and, if weighted, ``fit``; ``target`` is in [0, 1]."""
        if self.decoded_dropout > 0:
            draws = torch.rand(len(target), generator=generator, device=generator.device)
            inputs = inputs.without_decoded((draws < self.decoded_dropout).to(target.device))
        refined, brain = self.refine(inputs).float(), foreground(target)
        weight = torch.where(brain, 1.0, self.background_weight)
        error = refined - target
        distance = error.abs() if self.reconstruction == "l1" else error.square()
        losses = {"reconstruction": (distance * weight).sum() / weight.sum()}
        losses["total"] = losses["reconstruction"]
        if self.fit_weight > 0:
            rest = fit_intensities(refined, target, mask=brain) - target
            losses["fit"] = (rest.square() * brain).sum() / brain.sum().clamp_min(1)
            losses["total"] = losses["total"] + self.fit_weight * losses["fit"]
        return losses

    @torch.no_grad()
    def compute_metrics(self, inputs: RefinerInputs, target: Volume) -> dict[str, Tensor]:
        """Return means over the batch, in the target's brain: PSNR in dB and SSIM.

        ``psnr``, ``psnr_fitted`` (after an affine fit of intensities) and ``ssim`` of the refined volumes;
        ``psnr_fitted_decoded`` before refinement; ``psnr_fitted_sources`` with the decoded target zeroed.
        """
        brain = foreground(target)

        def fitted(volumes: Tensor) -> Tensor:
            return psnr(fit_intensities(volumes, target, mask=brain), target, mask=brain).mean()

        refined = self.refine(inputs).float().clamp(0.0, 1.0)
        return {
            "psnr": psnr(refined, target, mask=brain).mean(),
            "psnr_fitted": fitted(refined),
            "ssim": ssim3d(refined, target, mask=brain).mean(),
            "psnr_fitted_decoded": fitted(inputs.decoded),
            "psnr_fitted_sources": fitted(self.refine(inputs.without_decoded()).float().clamp(0.0, 1.0)),
        }
