"""Stage-3 training: a control network learns to tell a frozen base what the condition means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.generator.branches import apply_control
from prod9.generator.controlnet_maskgit import (
    ControlCondition,
    ControlNetMaskGiT,
    EncodedControl,
)
from prod9.generator.heads import TokenLogits
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.token_decoder import MaskedDecoder
from prod9.training.algorithms.base import weighted_mean
from prod9.training.metrics import frechet_distance, inception_score
from prod9.types import MaskedSample, TokenGrid, Volume

_UNCONDITIONAL_SHARE = 0.5
"""Of the samples without control, those that lose the base's condition too, as in the sampler's guidance."""


@dataclass(frozen=True)
class ControlStep:
    """One training step: what an objective may look at.

    prepared: of the base. rows: flattened indices of the hidden tokens. logits: of the controlled base at
    ``rows``. weights: of ``rows`` in the loss, 0 where nothing is known of the sample. dropped: bool ``[B]``.
    """

    sample: MaskedSample
    prepared: Any
    rows: Tensor
    logits: TokenLogits
    weights: Tensor
    dropped: Tensor
    generator: torch.Generator


class ControlNetTrainer:
    """Losses and metrics of a control network; steps no optimizer and owns no network.

    decoder: the frozen base, in evaluation mode. controlnet: made from it. objective: a key of
    ``OBJECTIVES``. label_smoothing: share given to the uniform distribution. control_dropout: share of the
    samples trained without control; half of them lose the base's condition too. anchor_weight: of the squared
    distance to the base's logits there. background_weight, region_weight: weight in the loss of tokens without
    foreground, and of those in or within region_margin tokens of a segmented class. privileged_share: of the
    hidden tokens that ``mse_privileged`` reveals to its teacher.
    """

    def __init__(
        self,
        *,
        decoder: MaskedDecoder,
        controlnet: ControlNetMaskGiT,
        scheduler: MaskGiTScheduler,
        objective: str = "cross_entropy",
        label_smoothing: float = 0.0,
        control_dropout: float = 0.1,
        anchor_weight: float = 1.0,
        background_weight: float = 0.25,
        region_weight: float = 20.0,
        region_margin: int = 1,
        privileged_share: float = 0.5,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(
                f"Expected an objective among {', '.join(OBJECTIVES)}, got {objective!r}; use one of these."
            )
        self.decoder = decoder
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.objective = objective
        self.label_smoothing = label_smoothing
        self.control_dropout = control_dropout
        self.anchor_weight = anchor_weight
        self.background_weight = background_weight
        self.region_weight = region_weight
        self.region_margin = region_margin
        self.privileged_share = privileged_share

    def compute_losses(
        self,
        tokens: TokenGrid,
        condition: Any,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``total``, the objective by its name and ``anchor``; means over hidden tokens.

        condition: of the base. foreground: True where a token's patch holds any of the head.
        """
        condition, control = self._drop(condition, control, generator, tokens.device)
        step = self._step(tokens, condition, control, generator, foreground)
        value = OBJECTIVES[self.objective](self, step)
        losses = {"total": value, self.objective: value}
        if self.anchor_weight > 0:
            losses["anchor"] = self._anchor(step)
            losses["total"] = value + self.anchor_weight * losses["anchor"]
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
        tokens: Tensor,
        condition: Any,
        control: ControlCondition,
        generator: torch.Generator,
        foreground: Tensor | None,
    ) -> ControlStep:
        sample = self.scheduler.corrupt(tokens, generator)
        with torch.no_grad():
            prepared = self.decoder.prepare(condition)
        # The number of hidden tokens is known to the device only: one sync, for much less head and softmax.
        rows = sample.mask.flatten().nonzero()[:, 0]
        logits = self._controlled(sample, prepared, self.controlnet.encode(control), rows)
        dropped = control.is_dropped
        known = dropped.logical_not().float()[rows // tokens[0].numel()]
        weights = self.token_weights(tokens, control, foreground).flatten()[rows] * known
        return ControlStep(sample, prepared, rows, logits, weights, dropped, generator)

    def _controlled(
        self, sample: MaskedSample, prepared: Any, control: EncodedControl, rows: Tensor
    ) -> TokenLogits:
        output = self.controlnet(sample.tokens, sample.mask, prepared, control, rows=rows)
        return apply_control(self.decoder, output, sample.tokens, sample.mask, prepared, rows)

    def token_weights(
        self, tokens: TokenGrid, control: ControlCondition, foreground: Tensor | None
    ) -> Float[Tensor, "B h w d"]:
        """Return what each token weighs in the loss: background, brain, or in and about a segmented class.

        Lesions are rare tokens; at equal weight a control network learns everything else first.
        """
        weights = torch.ones(tokens.shape, device=tokens.device)
        if foreground is not None:
            weights = weights.masked_fill(~foreground, self.background_weight)
        region = region_of(control, tokens.shape[1:], margin=self.region_margin)
        return weights if region is None else weights.masked_fill(region, self.region_weight)

    def _anchor(self, step: ControlStep) -> Tensor:
        """Squared distance to the base where nothing is known: there control has nothing to add."""
        tokens, mask = step.sample.tokens, step.sample.mask
        errors, start = [step.logits.values.sum()[None] * 0.0], 0
        # Few samples are dropped, so the base runs on those alone. One more sync: which ones.
        for k, (count, dropped) in enumerate(
            zip(mask.flatten(1).sum(1).tolist(), step.dropped.tolist(), strict=True)
        ):
            mine, start = slice(start, start + count), start + count
            if dropped:
                one = slice(k, k + 1)
                with torch.no_grad():
                    rows = step.rows[mine] - k * tokens[0].numel()
                    base = self.decoder(tokens[one], mask[one], step.prepared[one], rows=rows)
                ours = TokenLogits(step.logits.values[mine], step.logits.vocabulary)
                errors.append(squared_distance(ours, base))
        return torch.cat(errors[1:] or errors).mean()

    # -- metrics --------------------------------------------------------------------------------------

    @torch.no_grad()
    def compute_metrics(
        self,
        tokens: TokenGrid,
        condition: Any,
        control: ControlCondition,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
    ) -> dict[str, Tensor]:
        """Return scalars over hidden tokens at random times, in nats and shares, weighted as the loss.

        ``loss`` and ``accuracy`` under control, ``loss_base`` and ``accuracy_base`` without; where a batch
        has a segmented class, the same within it: ``loss_region`` … Put both networks into evaluation mode.
        """
        sample = self.scheduler.corrupt(tokens, generator)
        prepared = self.decoder.prepare(condition)
        rows = sample.mask.flatten().nonzero()[:, 0]
        target = sample.target.flatten()[rows]
        controlled = self._controlled(sample, prepared, self.controlnet.encode(control), rows)
        base = self.decoder(sample.tokens, sample.mask, prepared, rows=rows)
        weights = {"": self.token_weights(tokens, control, foreground).flatten()[rows]}
        region = region_of(control, tokens.shape[1:], margin=0)
        if region is not None and region.flatten()[rows].any():
            weights["_region"] = region.flatten()[rows].float()
        return {
            f"{name}{where}{which}": weighted_mean(values.float(), weight)
            for which, logits in (("", controlled), ("_base", base))
            for name, values in (
                ("loss", logits.cross_entropy(target)),
                ("accuracy", logits.mode() == target),
            )
            for where, weight in weights.items()
        }

    @staticmethod
    @torch.no_grad()
    def compute_sample_metrics(
        generated: Volume,
        real: Volume,
        *,
        extractor: Callable[[Tensor], Tensor],
        classify: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``fid`` of generated against real volumes and, with a classifier, ``inception_score``.

        extractor: volumes → features ``[N D]``. classify: volumes → class probabilities ``[N K]``, of a
        classifier trained on these very classes; without one the score says nothing and is left out.
        """
        metrics = {"fid": frechet_distance(extractor(generated), extractor(real))}
        if classify is not None:
            metrics["inception_score"] = inception_score(classify(generated))
        return metrics


def region_of(
    control: ControlCondition, token_grid: tuple[int, ...], *, margin: int
) -> Bool[Tensor, "B h w d"] | None:
    """Return True for tokens whose patch, or one within ``margin`` tokens, holds a segmented class.

    None for a control without segmentation; nowhere in samples of which nothing is known.
    """
    if control.seg is None:
        return None
    factors = [side // n for side, n in zip(control.seg.shape[1:], token_grid, strict=True)]
    inside = F.max_pool3d((control.seg > 0).float()[:, None], factors)
    if margin:
        inside = F.max_pool3d(inside, 2 * margin + 1, stride=1, padding=margin)
    return (inside[:, 0] > 0) & ~control.is_dropped.view(-1, 1, 1, 1)


def squared_distance(one: TokenLogits, other: TokenLogits) -> Float[Tensor, " R"]:
    """Return the mean squared difference of logits; those of a group count up to a constant, as in softmax."""
    parts = [
        a - a.mean(-1, keepdim=True) - (b - b.mean(-1, keepdim=True))
        for a, b in zip(one.split(), other.split(), strict=True)
    ]
    return torch.cat(parts, dim=-1).square().mean(-1)


# -- objectives ---------------------------------------------------------------------------------------


def _cross_entropy(trainer: ControlNetTrainer, step: ControlStep) -> Tensor:
    """Hidden tokens, predicted through base and control."""
    target = step.sample.target.flatten()[step.rows]
    return weighted_mean(
        step.logits.cross_entropy(target, label_smoothing=trainer.label_smoothing), step.weights
    )


def _mse_privileged(trainer: ControlNetTrainer, step: ControlStep) -> Tensor:
    """Logits of the base that sees more of the tokens: what it gets from them, control has to know."""
    sample = step.sample
    hidden = _keep_hidden(sample.mask, 1.0 - trainer.privileged_share, step.generator)
    with torch.no_grad():
        revealed = sample.target.masked_fill(hidden, 0)
        teacher = trainer.decoder(revealed, hidden, step.prepared, rows=step.rows)
    still = hidden.flatten()[step.rows].float()
    return weighted_mean(squared_distance(step.logits, teacher), step.weights * still)


def _mse(trainer: ControlNetTrainer, step: ControlStep) -> Tensor:
    """Logits of the base on the same tokens: the literal form, which the uncontrolled base satisfies.

    Kept for completeness. Its gradient is exactly zero at the start, and the condition never enters it.
    """
    with torch.no_grad():
        base = trainer.decoder(step.sample.tokens, step.sample.mask, step.prepared, rows=step.rows)
    return weighted_mean(squared_distance(step.logits, base), step.weights)


OBJECTIVES: Mapping[str, Callable[[ControlNetTrainer, ControlStep], Tensor]] = MappingProxyType(
    {"cross_entropy": _cross_entropy, "mse_privileged": _mse_privileged, "mse": _mse}
)
"""What a control network may be trained for; defined after the class whose settings they read."""


def _keep_hidden(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return ``mask`` with a random ``share`` of each sample's hidden tokens still hidden, at least one."""
    hidden = mask.flatten(1)
    draws = torch.rand(hidden.shape, generator=generator, device=generator.device).to(mask.device)
    rank = draws.masked_fill(~hidden, 2.0).argsort(1).argsort(1)
    count = (hidden.sum(1) * share).ceil().clamp_min(1)
    return (hidden & (rank < count[:, None])).view(mask.shape)
