"""Refiner training: from a decoded translation and its sources to the true scan."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.generator.refiner import Refined
from prod9.measures.metrics import fit_intensities, foreground, psnr, ssim3d
from prod9.training.algorithms.base import AbstractAlgorithm
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Label, Volume

RefinerNetwork = Callable[..., Refined]
"""(decoded, sources, present, target_label) → refined; see ``Refiner.forward``."""


_ERROR_WEIGHT = 0.01
"""Weight of the expected error's loss. Nothing else trains its layer, so the weight only matters for clipping."""


@dataclass(frozen=True)
class RefinerInputs:
    """A batch of what a refiner reads.

    decoded: ``[B 1 H W D]``. sources: ``[B K H W D]``, channel k of class k. present: bool ``[B K]``.
    target_label: int64 ``[B]``. Intensities are in [0, 1]. head_voxels: int64 ``[B]``, how many voxels show any source;
    None where nobody has counted them.
    """

    decoded: Volume
    sources: Float[Tensor, "B K H W D"]
    present: Bool[Tensor, "B K"]
    target_label: Label
    head_voxels: Label | None = None

    def without_decoded(self, where: Bool[Tensor, " B"] | None = None) -> "RefinerInputs":
        """Return the batch with the decoded target zeroed, in the samples of ``where`` or in all."""
        if where is None:
            return replace(self, decoded=torch.zeros_like(self.decoded))
        return replace(self, decoded=torch.where(where[:, None, None, None, None], 0.0, self.decoded))


@dataclass(kw_only=True, eq=False)
class RefinerTrainer(AbstractAlgorithm):
    """Losses and metrics of a refiner; steps no optimizer and owns no network.

    Attributes:
        refiner: the network.
        reconstruction: distance to the target.
        background_weight: of voxels outside of the target's brain in that distance.
        region_weight: of voxels in any segmented class, in every term; without segmentations no voxel is in one.
        fit_weight: of the squared distance over the brain that is left after the best affine map of intensities: it
            rewards contrast between tissues, whatever the brightness of the scan.
        decoded_dropout: share of samples trained with the decoded target zeroed, so that its share in the result can be
            measured.
    """

    refiner: RefinerNetwork
    reconstruction: Literal["l1", "l2"] = "l2"
    background_weight: float = 0.1
    region_weight: float = 1.0
    fit_weight: float = 4.0
    decoded_dropout: float = 0.25

    def refine(self, inputs: RefinerInputs) -> Refined:
        """Return the refined targets, not clipped, and their expected errors."""
        counted = {} if inputs.head_voxels is None else {"head_voxels": inputs.head_voxels}
        return self.refiner(inputs.decoded, inputs.sources, inputs.present, inputs.target_label, **counted)

    def compute_losses(
        self,
        inputs: RefinerInputs,
        target: Volume,
        *,
        generator: torch.Generator,
        region: Bool[Tensor, "B 1 H W D"] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``total``, ``reconstruction``, ``expected_error`` and, if weighted, ``fit``.

        ``expected_error`` is the negative log-likelihood of
        what is left under a Laplace distribution whose scale is the error that the refiner expects (Kendall and Gal
        2017, eq. 8), over the brain.

        Args:
            inputs: translations and their sources.
            target: ``[B 1 H W D]`` in [0, 1].
            generator: draws what is dropped.
            region: what is segmented in it; None without a segmentation.
        """
        if self.decoded_dropout > 0:
            draws = torch.rand(len(target), generator=generator, device=generator.device)
            inputs = inputs.without_decoded((draws < self.decoded_dropout).to(target.device))
        result, brain = self.refine(inputs), foreground(target)
        refined, expected = result.volume.float(), result.error.float()
        inside = brain.float()
        weight = torch.where(brain, 1.0, self.background_weight)
        if region is not None:
            inside = torch.where(region, self.region_weight * inside, inside)
            weight = torch.where(region, self.region_weight * weight, weight)
        error = refined - target
        distance = error.abs() if self.reconstruction == "l1" else error.square()
        losses = {"reconstruction": (distance * weight).sum() / weight.sum()}
        losses["total"] = losses["reconstruction"]
        if self.fit_weight > 0:
            rest = fit_intensities(refined, target, mask=brain) - target
            losses["fit"] = (rest.square() * inside).sum() / inside.sum().clamp_min(1)
            losses["total"] = losses["total"] + self.fit_weight * losses["fit"]
        # Selected by weight, not by index: an index needs the number of voxels from the device.
        counted = brain & (expected > 0)
        scale = torch.where(counted, expected, 0.5)  # 2 · 0.5 is 1, whose logarithm is 0
        left = torch.where(counted, error.detach().abs(), 0.0) / scale
        losses["expected_error"] = (left + (2 * scale).log()).sum() / counted.sum().clamp_min(1)
        losses["total"] = losses["total"] + _ERROR_WEIGHT * losses["expected_error"]
        return losses

    @torch.no_grad()
    def tally(self, inputs: RefinerInputs, target: Volume) -> Tally:
        """Count means over the volumes of the set that show any brain, in the target's brain: PSNR in dB and SSIM.

        ``psnr``, ``psnr_fitted`` (after an affine fit of intensities) and ``ssim`` of the refined volumes;
        ``psnr_fitted_decoded`` before refinement; ``psnr_fitted_sources`` with the decoded target zeroed.
        Means over all voxels of the brains: ``expected_error`` that the refiner predicts, and the true ``error``.
        """
        brain = foreground(target)
        shown = brain.flatten(1).any(1)

        def fitted(volumes: Tensor) -> Tensor:
            return mean_of(psnr(fit_intensities(volumes, target, mask=brain), target, mask=brain), shown)

        result = self.refine(inputs)
        refined = result.volume.float().clamp(0.0, 1.0)
        alone = self.refine(inputs.without_decoded()).volume.float().clamp(0.0, 1.0)
        return Tally(
            {
                "psnr": mean_of(psnr(refined, target, mask=brain), shown),
                "psnr_fitted": fitted(refined),
                "ssim": mean_of(ssim3d(refined, target, mask=brain), shown),
                "psnr_fitted_decoded": fitted(inputs.decoded),
                "psnr_fitted_sources": fitted(alone),
                "expected_error": mean_of(result.error.float(), brain),
                "error": mean_of((refined - target).abs(), brain),
            }
        )
