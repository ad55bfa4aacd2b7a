"""The losses of stage 3 of MaskGiT: logits of hidden tokens under control."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.controlnet.condition import ControlCondition
from prod9.generator.branches import apply_control
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT, EncodedControl
from prod9.generator.heads import TokenLogits
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.token_decoder import MaskedDecoder
from prod9.host_copies import on_host
from prod9.training.algorithms.base import Droppable, weighted_mean
from prod9.training.algorithms.control_family import AbstractControlFamily, Measured
from prod9.types import MaskedSample


@dataclass(frozen=True)
class TokenStep:
    """One training step, for the objectives.

    prepared: of the base. rows: flattened indices of the hidden tokens. logits: of the controlled base at
    ``rows``. weights: of ``rows`` in the loss, 0 where the control is dropped. dropped: bool ``[B]``.
    """

    sample: MaskedSample
    prepared: Any
    rows: Tensor
    logits: TokenLogits
    weights: Tensor
    dropped: Tensor
    generator: torch.Generator


class TokenControl(AbstractControlFamily[Droppable, TokenStep]):
    """Hides tokens, predicts them under control, compares.

    Args:
        decoder: the frozen base, in evaluation mode.
        controlnet: made from it.
        scheduler: γ.
        objective: a key of ``OBJECTIVES``.
        label_smoothing: share of the cross-entropy that is given to the uniform distribution.
        privileged_share: of ``mse_privileged``: share of the hidden tokens that its teacher sees.
    """

    def __init__(
        self,
        *,
        decoder: MaskedDecoder,
        controlnet: ControlNetMaskGiT,
        scheduler: MaskGiTScheduler,
        objective: str = "cross_entropy",
        label_smoothing: float = 0.0,
        privileged_share: float = 0.5,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(
                f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}; use one of these."
            )
        self.base = decoder
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.objective = objective
        self.label_smoothing = label_smoothing
        self.privileged_share = privileged_share

    def step(
        self,
        target: Tensor,
        condition: Droppable,
        control: ControlCondition,
        weights: Tensor,
        generator: torch.Generator,
    ) -> TokenStep:
        """Hide tokens and predict them.

        Args:
            target: tokens ``[B h w d]``.
            condition: of the base.
            control: what steers.
            weights: of the positions in the loss, ``[B h w d]``.
            generator: draws what is hidden.
        """
        sample = self.scheduler.corrupt(target, generator)
        with torch.no_grad():
            prepared = self.base.prepare(condition)
        rows = sample.rows
        logits = self._controlled(sample, prepared, self.controlnet.encode(control), rows)
        dropped = control.is_dropped
        known = dropped.logical_not().float()[rows // target[0].numel()]
        return TokenStep(sample, prepared, rows, logits, weights.flatten()[rows] * known, dropped, generator)

    def _controlled(
        self, sample: MaskedSample, prepared: Any, control: EncodedControl, rows: Tensor
    ) -> TokenLogits:
        output = self.controlnet(sample.tokens, sample.mask, prepared, control, rows=rows)
        return apply_control(self.base, output, sample.tokens, sample.mask, prepared, rows)

    def anchor(self, step: TokenStep) -> Tensor:
        """Squared distance to the base where the control is dropped: there it has nothing to add."""
        tokens, mask = step.sample.tokens, step.sample.mask
        errors, start = [step.logits.values.sum()[None] * 0.0], 0
        counts = step.sample.counts or mask.flatten(1).sum(1).tolist()
        # Few samples are dropped, so the base runs on those alone.
        for k, (count, dropped) in enumerate(zip(counts, on_host(step.dropped).tolist(), strict=True)):
            mine, start = slice(start, start + count), start + count
            if dropped:
                one = slice(k, k + 1)
                with torch.no_grad():
                    rows = step.rows[mine] - k * tokens[0].numel()
                    base = self.base(tokens[one], mask[one], step.prepared[one], rows=rows)
                ours = TokenLogits(step.logits.values[mine], step.logits.vocabulary)
                errors.append(squared_distance(ours, base))
        return torch.cat(errors[1:] or errors).mean()

    def measure(
        self, target: Tensor, condition: Droppable, control: ControlCondition, generator: torch.Generator
    ) -> Measured:
        """Return ``loss`` and ``accuracy`` of hidden tokens with and without control.

        Args:
            target: tokens ``[B h w d]``.
            condition: of the base.
            control: what steers.
            generator: draws what is hidden.
        """
        sample = self.scheduler.corrupt(target, generator)
        prepared = self.base.prepare(condition)
        rows = sample.rows
        wanted = sample.target.flatten()[rows]
        values: dict[tuple[str, str], Tensor] = {}
        for suffix, logits in (
            ("", self._controlled(sample, prepared, self.controlnet.encode(control), rows)),
            ("_base", self.base(sample.tokens, sample.mask, prepared, rows=rows)),
        ):
            values["loss", suffix] = logits.cross_entropy(wanted)
            values["accuracy", suffix] = logits.mode() == wanted
        return Measured(rows, values)

    def loss(self, step: TokenStep) -> Tensor:
        """Return the objective."""
        return OBJECTIVES[self.objective](self, step)

    # -- objectives -----------------------------------------------------------------------------------

    def cross_entropy(self, step: TokenStep) -> Tensor:
        """Hidden tokens, predicted through base and control."""
        target = step.sample.target.flatten()[step.rows]
        return weighted_mean(
            step.logits.cross_entropy(target, label_smoothing=self.label_smoothing), step.weights
        )

    def mse_privileged(self, step: TokenStep) -> Tensor:
        """Logits of the base that sees more of the tokens: control has to supply what it reads from them."""
        sample = step.sample
        hidden = keep_hidden(sample.mask, 1.0 - self.privileged_share, step.generator)
        with torch.no_grad():
            revealed = sample.target.masked_fill(hidden, 0)
            teacher = self.base(revealed, hidden, step.prepared, rows=step.rows)
        still = hidden.flatten()[step.rows].float()
        return weighted_mean(squared_distance(step.logits, teacher), step.weights * still)

    def mse(self, step: TokenStep) -> Tensor:
        """Logits of the base on the same tokens: the literal form, which the uncontrolled base already satisfies.

        Kept for completeness. Its gradient is exactly zero at the start, and the condition has no effect on it.
        """
        with torch.no_grad():
            base = self.base(step.sample.tokens, step.sample.mask, step.prepared, rows=step.rows)
        return weighted_mean(squared_distance(step.logits, base), step.weights)


OBJECTIVES: Mapping[str, Callable[[TokenControl, TokenStep], Tensor]] = MappingProxyType(
    {
        "cross_entropy": TokenControl.cross_entropy,
        "mse_privileged": TokenControl.mse_privileged,
        "mse": TokenControl.mse,
    }
)
"""What a control network of tokens may be trained for."""


def squared_distance(one: TokenLogits, other: TokenLogits) -> Float[Tensor, " R"]:
    """Return the mean squared difference of logits, in each group up to a constant, as in softmax."""
    parts = [
        a - a.mean(-1, keepdim=True) - (b - b.mean(-1, keepdim=True))
        for a, b in zip(one.split(), other.split(), strict=True)
    ]
    return torch.cat(parts, dim=-1).square().mean(-1)


def keep_hidden(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return ``mask`` with a random ``share`` of each sample's hidden tokens still hidden, at least one."""
    hidden = mask.flatten(1)
    draws = torch.rand(hidden.shape, generator=generator, device=generator.device).to(mask.device)
    rank = draws.masked_fill(~hidden, 2.0).argsort(1).argsort(1)
    count = (hidden.sum(1) * share).ceil().clamp_min(1)
    return (hidden & (rank < count[:, None])).view(mask.shape)
