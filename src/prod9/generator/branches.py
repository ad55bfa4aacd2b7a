"""One prediction of a sampling step: conditional, unconditional and uncontrolled branches in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prod9.generator.heads import TokenLogits
from prod9.generator.transformer import MaskedDecoder


@runtime_checkable
class ControlResult(Protocol):
    """What a control network gives at each step: residuals for the base, and adjustments of its logits."""

    @property
    def residuals(self) -> Sequence[Tensor]:
        """One ``[B n E]`` a pair of the base's blocks."""
        ...

    @property
    def logits(self) -> TokenLogits | None:
        """What is added to the base's logits, of the same rows; None for nothing."""
        ...


@dataclass(frozen=True)
class Control:
    """A control network and what it made of its condition.

    controlnet: called as ``controlnet(tokens, mask, prepared, control, rows=rows)``, returns a ControlResult.
    control: the encoded condition; like a decoder's it has ``unconditional()``, ``cat(other)`` and slices
    along the batch. strength: factor of residuals and adjustments. guidance_scale: how far to go from the
    prediction without control beyond the one with it.
    """

    controlnet: Callable[..., ControlResult]
    control: Any
    strength: float = 1.0
    guidance_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"Expected a control_strength of at least 0, got {self.strength}; 0 is none.")


class Branches:
    """Holds what a decoder prepared of every branch, and predicts.

    The first branch is the condition itself. guided: whether some step asks for guidance away from the
    unconditional branch, which drops condition and control both. control: None for the decoder alone; with a
    guidance scale of its own, a third branch keeps the condition and drops the control.
    always: whether every step is guided, so that the first branch is never wanted alone.
    """

    def __init__(
        self,
        decoder: MaskedDecoder,
        condition: Any,
        *,
        batch: int,
        guided: bool,
        always: bool = False,
        control: Control | None = None,
    ) -> None:
        # Strength 0 is the base, bit for bit and at no further cost.
        self.control = control = None if control is None or control.strength == 0 else control
        self.decoder, self.batch = decoder, batch
        self.has_unconditional = guided
        self.has_uncontrolled = control is not None and control.guidance_scale != 0
        conditions, controls = [condition], [] if control is None else [control.control]
        if self.has_unconditional:
            conditions.append(condition.unconditional())
        if self.has_uncontrolled:
            conditions.append(condition)
        self.count = len(conditions)
        if control is not None:
            controls += [control.control.unconditional()] * (self.count - 1)
        self.prepared = decoder.prepare(_joined(conditions))
        self.controls = _joined(controls) if controls else None
        if self.count > 1 and not always:
            self.first = self.prepared[:batch]
            self.first_control = None if control is None else control.control

    def predict(self, tokens: Tensor, mask: Tensor, rows: Tensor, ramp: float, scale: float) -> TokenLogits:
        """Return the logits ``[R K]`` of the flattened ``rows``.

        ramp: share of the guidance applied in this step, 0 to run the first branch alone. scale: of the
        guidance away from the unconditional branch.
        """
        if self.count == 1 or ramp == 0:
            alone = self.count == 1
            prepared = self.prepared if alone else self.first
            return self._run(tokens, mask, prepared, self.controls if alone else self.first_control, rows)
        every = torch.cat([rows + i * tokens.numel() for i in range(self.count)])
        repeats = (self.count, 1, 1, 1)
        both = self._run(tokens.repeat(repeats), mask.repeat(repeats), self.prepared, self.controls, every)
        first, *others = (TokenLogits(v, both.vocabulary) for v in both.values.chunk(self.count))
        result = first.guided(others.pop(0), ramp * scale) if self.has_unconditional else first
        if self.control is not None and others:
            lead = first.values.float() - others.pop().values.float()
            return TokenLogits(
                result.values.float() + ramp * self.control.guidance_scale * lead, both.vocabulary
            )
        return result

    def _run(self, tokens: Tensor, mask: Tensor, prepared: Any, controls: Any, rows: Tensor) -> TokenLogits:
        if self.control is None:
            return self.decoder(tokens, mask, prepared, rows=rows)
        strength = self.control.strength
        result = self.control.controlnet(tokens, mask, prepared, controls, rows=rows)
        residuals = [r if strength == 1 else r * strength for r in result.residuals]
        logits = self.decoder(tokens, mask, prepared, residuals, rows)
        if result.logits is None:
            return logits
        values = logits.values + strength * result.logits.values.to(logits.values.dtype)
        return TokenLogits(values, logits.vocabulary)


def _joined(parts: list[Any]) -> Any:
    first, *rest = parts
    for part in rest:
        first = first.cat(part)
    return first
