"""What stage 3 of MaskGiT compares: logits of hidden tokens under control."""

from dataclasses import dataclass
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
from prod9.training.algorithms.base import weighted_mean
from prod9.training.algorithms.control_regions import Measured
from prod9.types import MaskedSample


@dataclass(frozen=True)
class TokenStep:
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


class TokenControl:
    """Hides tokens, predicts them under control, compares. For the keywords see ControlNetTrainer."""

    def __init__(
        self,
        *,
        decoder: MaskedDecoder,
        controlnet: ControlNetMaskGiT,
        scheduler: MaskGiTScheduler,
        label_smoothing: float,
        privileged_share: float,
    ) -> None:
        self.decoder = decoder
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.privileged_share = privileged_share

    def step(
        self,
        tokens: Tensor,
        condition: Any,
        control: ControlCondition,
        weights: Tensor,
        generator: torch.Generator,
    ) -> TokenStep:
        """Hide tokens ``[B h w d]`` and predict them; ``weights [B h w d]``: of the positions."""
        sample = self.scheduler.corrupt(tokens, generator)
        with torch.no_grad():
            prepared = self.decoder.prepare(condition)
        # The number of hidden tokens is known to the device only: one sync, for much less head and softmax.
        rows = sample.mask.flatten().nonzero()[:, 0]
        logits = self._controlled(sample, prepared, self.controlnet.encode(control), rows)
        dropped = control.is_dropped
        known = dropped.logical_not().float()[rows // tokens[0].numel()]
        return TokenStep(sample, prepared, rows, logits, weights.flatten()[rows] * known, dropped, generator)

    def _controlled(
        self, sample: MaskedSample, prepared: Any, control: EncodedControl, rows: Tensor
    ) -> TokenLogits:
        output = self.controlnet(sample.tokens, sample.mask, prepared, control, rows=rows)
        return apply_control(self.decoder, output, sample.tokens, sample.mask, prepared, rows)

    def anchor(self, step: TokenStep) -> Tensor:
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

    def measure(
        self, tokens: Tensor, condition: Any, control: ControlCondition, generator: torch.Generator
    ) -> Measured:
        """Return ``loss`` and ``accuracy`` of hidden tokens with and without control."""
        sample = self.scheduler.corrupt(tokens, generator)
        prepared = self.decoder.prepare(condition)
        rows = sample.mask.flatten().nonzero()[:, 0]  # one sync, as in a training step
        target = sample.target.flatten()[rows]
        values: dict[tuple[str, str], Tensor] = {}
        for suffix, logits in (
            ("", self._controlled(sample, prepared, self.controlnet.encode(control), rows)),
            ("_base", self.decoder(sample.tokens, sample.mask, prepared, rows=rows)),
        ):
            values["loss", suffix] = logits.cross_entropy(target)
            values["accuracy", suffix] = logits.mode() == target
        return Measured(rows, values)

    # -- objectives -----------------------------------------------------------------------------------

    def cross_entropy(self, step: TokenStep) -> Tensor:
        """Hidden tokens, predicted through base and control."""
        target = step.sample.target.flatten()[step.rows]
        return weighted_mean(
            step.logits.cross_entropy(target, label_smoothing=self.label_smoothing), step.weights
        )

    def mse_privileged(self, step: TokenStep) -> Tensor:
        """Logits of the base that sees more of the tokens: what it gets from them, control has to know."""
        sample = step.sample
        hidden = keep_hidden(sample.mask, 1.0 - self.privileged_share, step.generator)
        with torch.no_grad():
            revealed = sample.target.masked_fill(hidden, 0)
            teacher = self.decoder(revealed, hidden, step.prepared, rows=step.rows)
        still = hidden.flatten()[step.rows].float()
        return weighted_mean(squared_distance(step.logits, teacher), step.weights * still)

    def mse(self, step: TokenStep) -> Tensor:
        """Logits of the base on the same tokens: the literal form, which the uncontrolled base satisfies.

        Kept for completeness. Its gradient is exactly zero at the start, and the condition never enters it.
        """
        with torch.no_grad():
            base = self.decoder(step.sample.tokens, step.sample.mask, step.prepared, rows=step.rows)
        return weighted_mean(squared_distance(step.logits, base), step.weights)


def squared_distance(one: TokenLogits, other: TokenLogits) -> Float[Tensor, " R"]:
    """Return the mean squared difference of logits; those of a group count up to a constant, as in softmax."""
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
