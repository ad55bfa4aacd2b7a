"""One prediction of a sampling step: all branches of guidance, those of one network in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prod9.autoencoder.checks import require_finite
from prod9.conditions import Condition
from prod9.generator.heads import TokenLogits
from prod9.generator.token_decoder import MaskedDecoder


@runtime_checkable
class ControlResult(Protocol):
    """The output of a control network at one step: residuals for the base, and adjustments of its logits."""

    @property
    def residuals(self) -> Sequence[Tensor]:
        """One ``[B n E]`` per pair of the base's blocks."""
        ...

    @property
    def logits(self) -> TokenLogits | None:
        """Added to the base's logits of the same rows; None for nothing."""
        ...


@dataclass(frozen=True)
class Weak:
    """A weaker network to guide away from (autoguidance, arXiv 2406.02507).

    decoder: of the same tokens and conditions. scale: factor of the step from its prediction to that of the base, added
    to the base's; not 0.
    """

    decoder: MaskedDecoder
    scale: float


@dataclass(frozen=True)
class Control:
    """A control network and its encoded condition.

    controlnet: called as ``controlnet(tokens, mask, prepared, control, rows=rows)``, returns a ControlResult.
    control: the encoded condition, with ``unconditional()`` and ``cat(other)``; slices along the batch. strength:
    factor of residuals and adjustments. guidance_scale: factor of the step from the prediction without control to
    that with control, added to the latter.
    """

    controlnet: Callable[..., ControlResult]
    control: Any
    strength: float = 1.0
    guidance_scale: float = 0.0

    def __post_init__(self) -> None:
        require_finite(control_strength=self.strength, control_guidance_scale=self.guidance_scale)
        if self.strength < 0:
            raise ValueError(
                f"control_strength: expected at least 0, got {self.strength}; 0 is the base alone"
            )


class Branches:
    """Prepares the branches of guidance once, and predicts with all of them in one batch.

    The first branch has the condition; the second has neither condition nor control; a third, with the condition but
    without control, is added where control has a guidance scale of its own, or where a weak network is compared with
    it, which knows no control. The weak network has a batch of its own. Every difference is added to the first branch.

    Args:
        decoder: the base.
        condition: that of the first branch.
        batch: number of samples.
        ramps: for each step the share of the guidance that is applied; at 0 the first branch runs alone.
        scale: of the guidance away from the second branch; 0 leaves that branch out.
        control: None for the decoder alone.
        weak: None for no autoguidance.
    """

    def __init__(
        self,
        decoder: MaskedDecoder,
        condition: Condition,
        *,
        batch: int,
        ramps: Sequence[float],
        scale: float,
        control: Control | None = None,
        weak: Weak | None = None,
    ) -> None:
        # Strength 0 equals the base bit for bit, at no further cost.
        self.control = control = None if control is None or control.strength == 0 else control
        self.decoder, self.ramps = decoder, ramps
        self.scale = scale if any(ramps) else 0.0
        self.control_scale = control.guidance_scale if control is not None and any(ramps) else 0.0
        self.weak = weak if any(ramps) else None
        self.weak_prepared = None if self.weak is None else self.weak.decoder.prepare(condition)
        conditions, controls = [condition], [] if control is None else [control.control]
        if self.scale:
            conditions.append(condition.unconditional())
        self.has_plain = bool(self.control_scale or (self.weak and control))
        if self.has_plain:
            conditions.append(condition)
        self.count = len(conditions)
        if control is not None:
            controls += [control.control.unconditional()] * (self.count - 1)
        self.every = (decoder.prepare(_joined(conditions)), _joined(controls))
        self.first = self.every
        if self.count > 1 and not all(ramps):
            self.first = (self.every[0][:batch], None if control is None else control.control)

    def predict(self, step: int, tokens: Tensor, mask: Tensor, rows: Tensor) -> TokenLogits:
        """Return the guided logits ``[R K]`` of ``rows`` at ``step``.

        Args:
            step: of the sampler, from 0.
            tokens: ``[B h w d]``.
            mask: ``[B h w d]``, True where a token is not known yet.
            rows: ``[R]``, flattened positions.
        """
        ramp = self.ramps[step]
        if ramp == 0 or (self.count == 1 and self.weak is None):
            return self._run(tokens, mask, self.first, rows)
        every = torch.cat([rows + i * tokens.numel() for i in range(self.count)])
        repeats = (self.count, 1, 1, 1)
        joint = self._run(tokens.repeat(repeats), mask.repeat(repeats), self.every, every)
        first, *others = joint.chunk(self.count)
        result = first.guided(others[0], ramp * self.scale) if self.scale else first
        plain = others[-1] if self.has_plain else first
        if self.control_scale:
            result = result.led(first, plain, ramp * self.control_scale)
        if self.weak is not None:
            weak = self.weak.decoder(tokens, mask, self.weak_prepared, rows=rows)
            result = result.led(plain, weak, ramp * self.weak.scale)
        return result

    def _run(self, tokens: Tensor, mask: Tensor, branches: tuple[Any, Any], rows: Tensor) -> TokenLogits:
        prepared, control = branches
        if self.control is None:
            return self.decoder(tokens, mask, prepared, rows=rows)
        output = self.control.controlnet(tokens, mask, prepared, control, rows=rows)
        return apply_control(self.decoder, output, tokens, mask, prepared, rows, self.control.strength)


def apply_control(
    decoder: MaskedDecoder,
    output: ControlResult,
    tokens: Tensor,
    mask: Tensor,
    prepared: Any,
    rows: Tensor | None = None,
    strength: float = 1.0,
) -> TokenLogits:
    """Return the base's logits under control.

    Args:
        decoder: the base.
        output: of the control network.
        tokens: see the base, like the next three.
        mask: True where a token is hidden.
        prepared: the output of ``decoder.prepare``.
        rows: flattened indices of the logits wanted; None for all.
        strength: factor of residuals and adjustments.
    """
    residuals = [r if strength == 1 else r * strength for r in output.residuals]
    logits = decoder(tokens, mask, prepared, residuals, rows)
    if output.logits is None:
        return logits
    return logits.plus(strength * output.logits.values)


def _joined(parts: list[Any]) -> Any:
    return reduce(lambda one, other: one.cat(other), parts) if parts else None
