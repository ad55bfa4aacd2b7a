"""Stage-3 training: a control network learns to tell a frozen base what the condition means."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.token_decoder import MaskedDecoder
from prod9.measures.metrics import inception_score, num_directions, principal_frechet
from prod9.training.algorithms.control_flow import FlowControl, RegionContrast
from prod9.training.algorithms.control_regions import position_weights, region_of
from prod9.training.algorithms.control_tokens import TokenControl
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Latent, TokenGrid, Volume

OBJECTIVES: Mapping[str, Callable[[Any, Any], Tensor]] = MappingProxyType(
    {
        "cross_entropy": TokenControl.cross_entropy,
        "mse_privileged": TokenControl.mse_privileged,
        "mse": TokenControl.mse,
        "velocity": FlowControl.velocity,
    }
)
"""What a control network may be trained for: methods of its family, of a step that the family made."""

_UNCONDITIONAL_SHARE = 0.5
"""Of the samples without control, those that lose the base's condition too, as in the sampler's guidance."""


class ControlNetTrainer:
    """Losses and metrics of a control network of either family; steps no optimizer and owns no network.

    decoder: the frozen base, a masked decoder or a DiffusionModelRF, in evaluation mode. controlnet: made from it.
    objective: a key of ``OBJECTIVES``, ``velocity`` for a flow and the others for tokens. control_dropout: share of
    the samples trained without control; half of them lose the base's condition too. anchor_weight: of the squared
    distance to the base there. background_weight, region_weight: weight in the loss of positions without foreground,
    and of those in or within region_margin positions of a segmented class. Tokens: label_smoothing, share given to
    the uniform distribution; privileged_share, of the hidden tokens that ``mse_privileged`` reveals to its teacher.
    Flow: distance, ``l2`` or ``l1`` between velocities; contrast, None for none.
    """

    def __init__(
        self,
        *,
        decoder: MaskedDecoder | DiffusionModelRF,
        controlnet: ControlNetMaskGiT | ControlNetRF,
        scheduler: MaskGiTScheduler | RectifiedFlowSchedulerRF,
        objective: str = "cross_entropy",
        label_smoothing: float = 0.0,
        control_dropout: float = 0.1,
        anchor_weight: float = 1.0,
        background_weight: float = 0.25,
        region_weight: float = 20.0,
        region_margin: int = 1,
        privileged_share: float = 0.5,
        distance: str = "l2",
        contrast: RegionContrast | None = None,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(
                f"Expected an objective among {', '.join(OBJECTIVES)}, got {objective!r}; use one of these."
            )
        self.decoder = decoder
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.objective = objective
        self.control_dropout = control_dropout
        self.anchor_weight = anchor_weight
        self.background_weight = background_weight
        self.region_weight = region_weight
        self.region_margin = region_margin
        self.contrast = contrast
        self.family = self._family(label_smoothing, privileged_share, distance)

    def _family(
        self, label_smoothing: float, privileged_share: float, distance: str
    ) -> TokenControl | FlowControl:
        """Return what corrupts and compares; ValueError for parts of different families."""
        base, network, scheduler, contrast = self.decoder, self.controlnet, self.scheduler, self.contrast
        if isinstance(network, ControlNetRF) != (self.objective == "velocity"):
            raise ValueError(
                f"Expected objective 'velocity' for a ControlNetRF and another one for a ControlNetMaskGiT, got "
                f"{self.objective!r} for a {type(network).__name__}."
            )
        if isinstance(network, ControlNetRF):
            assert isinstance(base, DiffusionModelRF)
            assert isinstance(scheduler, RectifiedFlowSchedulerRF)
            return FlowControl(
                base=base, controlnet=network, scheduler=scheduler, distance=distance, contrast=contrast
            )
        if contrast is not None:
            raise ValueError("Expected no region contrast for tokens, got one; it compares velocities.")
        assert not isinstance(base, DiffusionModelRF)
        assert isinstance(scheduler, MaskGiTScheduler)
        return TokenControl(
            decoder=base,
            controlnet=network,
            scheduler=scheduler,
            label_smoothing=label_smoothing,
            privileged_share=privileged_share,
        )

    def compute_losses(
        self,
        target: TokenGrid | Latent,
        condition: Any,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """Return ``total``, the objective by its name, ``anchor`` and, where there is one, ``contrast``.

        target: tokens, or latents scaled to a deviation of 1. condition: of the base. foreground: True where a
        position's patch holds any of the head. step: of the training, for the schedule of the contrast.
        """
        condition, control = self._drop(condition, control, generator, target.device)
        made = self._step(target, condition, control, generator, foreground)
        value = OBJECTIVES[self.objective](self.family, made)
        losses = {"total": value, self.objective: value}
        if self.anchor_weight > 0:
            losses["anchor"] = self.family.anchor(made)
            losses["total"] = value + self.anchor_weight * losses["anchor"]
        if self.contrast is not None:
            assert isinstance(self.family, FlowControl)  # others were refused
            losses["contrast"] = self.family.contrast(made)
            losses["total"] = losses["total"] + self.contrast.weight_at(step) * losses["contrast"]
        return losses

    def _drop(
        self, condition: Any, control: ControlCondition, generator: torch.Generator, device: torch.device
    ) -> tuple[Any, ControlCondition]:
        """Take the control, and sometimes the condition too, from a random share of the samples."""
        draws = torch.rand(len(control), generator=generator, device=generator.device).to(device)
        share = self.control_dropout
        return condition.drop(draws < share * _UNCONDITIONAL_SHARE), control.drop(draws < share)

    def _step(
        self,
        target: Tensor,
        condition: Any,
        control: ControlCondition,
        generator: torch.Generator,
        foreground: Tensor | None,
    ) -> Any:
        weights = self.position_weights(target, control, foreground)
        return self.family.step(target, condition, control, weights, generator)

    def position_weights(
        self, target: TokenGrid | Latent, control: ControlCondition, foreground: Tensor | None
    ) -> Float[Tensor, "B h w d"]:
        """Return what each position weighs in the loss: background, brain, or in and about a segmented class."""
        return position_weights(
            target,
            foreground=foreground,
            background_weight=self.background_weight,
            region=region_of(control, target.shape[-3:], margin=self.region_margin),
            region_weight=self.region_weight,
        )

    # -- metrics --------------------------------------------------------------------------------------

    def compute_metrics(
        self,
        target: TokenGrid | Latent,
        condition: Any,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
    ) -> dict[str, Tensor]:
        """Return scalars at random times, weighted as the loss: ``loss`` under control, ``loss_base`` without.

        Means over all positions of the set. Of tokens, in nats over the hidden ones, also ``accuracy`` and
        ``accuracy_base``. Where a set has a segmented class, the same within it: ``loss_region`` … Put both networks
        into evaluation mode.
        """
        return self.summarise(
            self.tally(target, condition, control, generator=generator, foreground=foreground)
        )

    @torch.no_grad()
    def tally(
        self,
        target: TokenGrid | Latent,
        condition: Any,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
    ) -> Tally:
        """Return what `summarise` needs of a batch; tallies of batches, also of other ranks, add up."""
        measured = self.family.measure(target, condition, control, generator)
        rows = measured.rows
        weights = {"": self.position_weights(target, control, foreground).flatten()[rows]}
        region = region_of(control, target.shape[-3:], margin=0)
        if region is not None:
            weights["_region"] = region.flatten()[rows].float()
        means = {
            f"{name}{where}{which}": mean_of(values.float(), weight)
            for (name, which), values in measured.values.items()
            for where, weight in weights.items()
        }
        return Tally(means)

    def summarise(self, tally: Tally) -> dict[str, Tensor]:
        """Return the scores of the set that ``tally`` is of."""
        return tally.averages()

    @staticmethod
    @torch.no_grad()
    def compute_sample_metrics(
        generated: Volume,
        real: Volume,
        *,
        extractor: Callable[[Tensor], Tensor],
        classify: Callable[[Tensor], Tensor] | None = None,
        directions: int | None = None,
    ) -> dict[str, Tensor]:
        """Return ``fid`` of generated against real volumes and, with a classifier, ``inception_score``.

        A validation samples far fewer volumes than there are features, and the Fréchet distance of all of them would
        fall when samples lose variety: ``fid`` is that of the principal directions of both sets together.

        Args:
            generated: volumes in [0, 1].
            real: volumes to compare with.
            extractor: volumes → features ``[N D]``.
            classify: volumes → class probabilities ``[N K]``, of a classifier trained on these very classes; without
                one the score says nothing and is left out.
            directions: in how many directions to compare; by default as many as this number of real volumes carries.
        """
        made, wanted = extractor(generated), extractor(real)
        if directions is None:
            directions = num_directions(min(len(made), len(wanted)), wanted.shape[1])
        metrics = {"fid": principal_frechet(made, wanted, directions=directions)}
        if classify is not None:
            metrics["inception_score"] = inception_score(classify(generated))
        return metrics
