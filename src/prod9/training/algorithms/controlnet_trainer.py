"""Stage-3 training: a control network steers a frozen base by a condition."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.controlnet.condition import ControlCondition
from prod9.host_copies import host_generator, placed
from prod9.measures.metrics import inception_score, num_directions, principal_frechet
from prod9.training.algorithms.control_family import AbstractControlFamily, K, S
from prod9.training.algorithms.control_regions import AbstractWeightedAlgorithm, region_of
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Latent, TokenGrid, Volume

_UNCONDITIONAL_SHARE = 0.5
"""Of the samples without control, those that lose the base's condition too, as in the sampler's guidance."""


@dataclass(kw_only=True, eq=False)
class ControlNetTrainer(AbstractWeightedAlgorithm, Generic[K, S]):
    """Losses and metrics of a control network of either family; steps no optimizer and owns no network.

    Attributes:
        family: a TokenControl or a FlowControl, which holds the networks and the objective.
        control_dropout: share of the samples trained without control; half of them lose the base's condition too.
        anchor_weight: of the squared distance to the base where control is absent.
    """

    family: AbstractControlFamily[K, S]
    control_dropout: float = 0.1
    anchor_weight: float = 1.0
    region_weight: float = 20.0

    def compute_losses(
        self,
        target: TokenGrid | Latent,
        condition: K,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """Return ``total``, the objective by its name, ``anchor`` and, where there is one, ``contrast``.

        Args:
            target: tokens, or latents scaled to a deviation of 1.
            condition: of the base.
            control: what steers.
            generator: draws times and noise, or what is hidden.
            foreground: True where a position's patch holds any of the head.
            step: of the training, for the schedule of the contrast.
        """
        condition, control = self._drop(condition, control, generator, target.device)
        made = self._step(target, condition, control, generator, foreground)
        value = self.family.loss(made)
        losses = {"total": value, self.family.objective: value}
        if self.anchor_weight > 0:
            losses["anchor"] = self.family.anchor(made)
            losses["total"] = value + self.anchor_weight * losses["anchor"]
        for name, (weight, term) in self.family.extra_terms(made, step).items():
            losses[name] = term
            losses["total"] = losses["total"] + weight * term
        return losses

    def _drop(
        self, condition: K, control: ControlCondition, generator: torch.Generator, device: torch.device
    ) -> tuple[K, ControlCondition]:
        """Take the control, and sometimes the condition too, from a random share of the samples."""
        draws, share = torch.rand(len(control), generator=host_generator(generator)), self.control_dropout
        both, alone = (placed(draws < s, device) for s in (share * _UNCONDITIONAL_SHARE, share))
        return condition.drop(both), control.drop(alone)

    def _step(
        self,
        target: Tensor,
        condition: K,
        control: ControlCondition,
        generator: torch.Generator,
        foreground: Tensor | None,
    ) -> S:
        weights = self.position_weights(target, control, foreground)
        return self.family.step(target, condition, control, weights, generator)

    def position_weights(
        self, target: TokenGrid | Latent, control: ControlCondition, foreground: Tensor | None
    ) -> Float[Tensor, "B h w d"]:
        """Return what each position weighs in the loss: background, brain, or in and about a segmented class.

        ``foreground`` is bool ``[B h w d]``, or None for no brain apart from the background.
        """
        return self.weights_of(target, foreground=foreground, seg=control.seg, is_dropped=control.is_dropped)

    # -- metrics --------------------------------------------------------------------------------------

    @torch.no_grad()
    def tally(
        self,
        target: TokenGrid | Latent,
        condition: K,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
    ) -> Tally:
        """Count scalars at random times, weighted as the loss: ``loss`` under control, ``loss_base`` without.

        Means over all positions of the set. For tokens, in nats over the hidden ones, also ``accuracy`` and
        ``accuracy_base``. Where a set has a segmented class, the same within it: ``loss_region`` … Put both networks
        into evaluation mode.

        Args:
            target: tokens, or latents scaled to a deviation of 1.
            condition: of the base.
            control: what steers.
            generator: draws times and noise, or what is hidden.
            foreground: True where a position's patch holds any of the head.
        """
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
