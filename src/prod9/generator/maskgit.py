"""Masked generation: the masking schedule, shared by training and sampling, and the sampler."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prod9.autoencoder.checks import require_below, require_choice, require_finite, require_one_each
from prod9.conditions import Condition
from prod9.generator.branches import Branches, Control, ControlResult, Weak
from prod9.generator.heads import TokenLogits
from prod9.generator.orders import FIXED_ORDERS, RevealQueue, draw_orders
from prod9.generator.token_decoder import MaskedDecoder
from prod9.host_copies import host_generator, on_host, placed, positions
from prod9.types import MaskedSample, TokenGrid, TokenMask

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda r: torch.log2(2.0 - r),
    "log2": lambda r: torch.log2(2.0 - r),
    "linear": lambda r: 1.0 - r,
    "sqrt": lambda r: (1.0 - r).sqrt(),
    # cos(πr/2), written so that it is exactly 0 at r = 1.
    "cosine": lambda r: torch.sin((1.0 - r) * (math.pi / 2)),
    "arccos": lambda r: torch.arccos(r) * (2 / math.pi),
}
"""γ(r), the share of tokens hidden at time r, for float64 r in [0, 1]. ``log2`` is an alias of ``log``."""

GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: u,
    "cosine": lambda u: (1.0 - math.cos(math.pi * u)) / 2,
}
"""The share of the guidance scale at u in (0, 1], the place of a step among those that are guided; 1 at the end.

Rising ramps use no guidance for the first tokens, which decide most about the rest.
"""


class MaskGiTScheduler:
    """The number of tokens that are hidden at time r: γ(0) = 1, γ(1) = 0, decreasing.

    scheduler_type: a key of ``SCHEDULES``.

    Example:
        >>> import torch
        >>> from prod9.generator.maskgit import MaskGiTScheduler
        >>> scheduler = MaskGiTScheduler(scheduler_type="linear")
        >>> scheduler.num_hidden(0.25, 64).item()
        48
        >>> tokens, generator = torch.zeros(1, 4, 4, 4, dtype=torch.int64), torch.Generator().manual_seed(0)
        >>> scheduler.corrupt_at(tokens, torch.tensor([0.25]), generator).mask.sum().item()
        48
    """

    def __init__(self, *, scheduler_type: str = "log") -> None:
        require_choice("scheduler_type", scheduler_type, SCHEDULES)
        self.scheduler_type = scheduler_type

    def gamma(self, r: float | Tensor) -> Tensor:
        """Return the share hidden at time ``r`` in [0, 1], float64, shaped like ``r``."""
        return SCHEDULES[self.scheduler_type](torch.as_tensor(r, dtype=torch.float64))

    def num_hidden(self, r: float | Tensor, total: int) -> Tensor:
        """Return how many of ``total`` tokens are hidden at time ``r``, shaped like ``r``: γ(r) · total, rounded."""
        return (self.gamma(r) * total).round().long()

    def corrupt(self, tokens: TokenGrid, generator: torch.Generator) -> MaskedSample:
        """Hide tokens for a training step, exactly γ(r) of each sample's and at least one.

        Each sample has its own time r, stratified over the batch: one time in each of B equal slices of [0, 1], in
        random order.
        """
        # Times are drawn on the host, which then knows how many tokens are hidden.
        batch, drawing = tokens.shape[0], host_generator(generator)
        jitter = torch.rand(batch, generator=drawing, dtype=torch.float64)
        rank = torch.randperm(batch, generator=drawing)
        return self.corrupt_at(tokens, (rank + jitter) / batch, generator)

    def corrupt_at(self, tokens: TokenGrid, r: Tensor, generator: torch.Generator) -> MaskedSample:
        """Hide γ(r) of each sample's tokens, a random subset; ``r [B]`` in [0, 1], on any device."""
        batch, length = tokens.shape[0], tokens[0].numel()
        counts = self.num_hidden(on_host(r), length).clamp_min(1)
        count = placed(counts, generator.device)
        order = torch.rand(batch, length, generator=generator, device=generator.device).argsort(1)
        hidden = torch.arange(length, device=generator.device) < count[:, None]
        mask = torch.zeros_like(hidden).scatter_(1, order, hidden).view(tokens.shape).to(tokens.device)
        hidden_tokens = tokens.masked_fill(mask, 0)
        return MaskedSample(tokens=hidden_tokens, mask=mask, target=tokens, counts=tuple(counts.tolist()))


@dataclass(frozen=True)
class SamplerState:
    """The argument of a sampling callback: ``step`` of ``steps`` are done, ``mask`` is True where hidden."""

    step: int
    steps: int
    tokens: Tensor
    mask: Tensor


class MaskGiTSampler:
    """Draws a token grid in a few steps, each of which reveals as many tokens as the schedule says.

    The decoder has to be in evaluation mode.

    Args:
        scheduler: γ, that of training.
        steps: largest number of network calls; a step that would reveal nothing is skipped.
        order: ``confidence`` (most likely draws first), ``halton`` (spread out) or ``random``.
        temperature: of the drawn tokens.
        gumbel_temperature: noise on the ranking of ``confidence``, annealed to 0.
        top_p: nucleus of each group of levels.
        guidance_scale: factor of the difference between conditional and unconditional prediction that is added to the
            conditional one; 0 runs no second branch.
        guidance_interval: the share of the steps, ``[from, to)``, that is guided.
        guidance_schedule: a key of ``GUIDANCE_SCHEDULES``, the growth of the scale over the interval.
        autoguidance_scale: factor of the difference between this decoder's prediction and that of a weaker one, which
            is added too, on the same steps and with the same growth (arXiv 2406.02507); 0 needs no weaker one.
        remasking: η in [0, 1] of ReMDM's rescaled schedule (arXiv 2503.00307). Each step hides some drawn tokens
            again, so that they can be drawn again beside later neighbours, and reveals as many more to keep the
            schedule. Useful with many steps.

    Raises:
        ValueError: for settings outside of their ranges.

    Example:
        >>> import torch
        >>> from prod9.generator.condition import MaskGiTCondition
        >>> from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
        >>> from prod9.generator.transformer import TransformerDecoder
        >>> decoder = TransformerDecoder(levels=[8, 5], embed_dim=24, num_blocks=2, num_heads=2).eval()
        >>> sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=3, order="halton")
        >>> condition, generator = MaskGiTCondition(torch.tensor([1])), torch.Generator().manual_seed(0)
        >>> tuple(sampler.sample(decoder, (1, 4, 4, 4), condition, generator).shape)
        (1, 4, 4, 4)
    """

    def __init__(
        self,
        *,
        scheduler: MaskGiTScheduler,
        steps: int = 12,
        order: str = "confidence",
        temperature: float = 1.0,
        gumbel_temperature: float = 4.5,
        top_p: float = 1.0,
        guidance_scale: float = 0.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_schedule: str = "constant",
        autoguidance_scale: float = 0.0,
        remasking: float = 0.0,
    ) -> None:
        require_choice("order", order, ("confidence", *FIXED_ORDERS))
        require_choice("guidance_schedule", guidance_schedule, GUIDANCE_SCHEDULES)
        require_finite(
            temperature=temperature,
            gumbel_temperature=gumbel_temperature,
            guidance_scale=guidance_scale,
            autoguidance_scale=autoguidance_scale,
        )
        if steps < 1 or temperature <= 0 or not 0 < top_p <= 1:
            raise ValueError(
                "steps, temperature, top_p: expected at least 1, above 0, and in (0, 1], got "
                f"{steps}, {temperature}, {top_p}; for nearly greedy draws use a temperature such as 0.1"
            )
        if not 0.0 <= remasking <= 1.0:
            raise ValueError(f"remasking: expected 0 to 1, got {remasking}; try 0.05, or 0 for none")
        self.scheduler = scheduler
        self.steps = steps
        self.order = order
        self.temperature = temperature
        self.gumbel_temperature = gumbel_temperature
        self.top_p = top_p
        self.guidance_scale = guidance_scale
        self.guidance_schedule = guidance_schedule
        self.autoguidance_scale = autoguidance_scale
        self.remasking = remasking
        self.guidance_interval = start, end = float(guidance_interval[0]), float(guidance_interval[1])
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(
                f"guidance_interval: expected 0 <= from <= to <= 1, got {(start, end)}; swap the two"
            )

    @torch.no_grad()
    def sample(
        self,
        decoder: MaskedDecoder,
        shape: Sequence[int],
        condition: Condition,
        generator: torch.Generator | Sequence[torch.Generator],
        initial_tokens: TokenGrid | None = None,
        initial_mask: TokenMask | None = None,
        callback: Callable[[SamplerState], None] | None = None,
        weak: MaskedDecoder | None = None,
    ) -> TokenGrid:
        """Return int64 tokens of ``shape`` (B, h, w, d) on the device of ``condition``.

        Args:
            decoder: predicts the tokens.
            shape: (B, h, w, d).
            condition: of B samples.
            generator: one per sample, so that a sample does not depend on its batch; a single one seeds as many.
            initial_tokens: start from these; together with ``initial_mask``.
            initial_mask: True where a token is drawn; the others are kept.
            callback: called after each step that revealed something.
            weak: the weaker decoder of ``autoguidance_scale``, in evaluation mode; needed unless that is 0.
        """
        run = _Run(self, decoder, tuple(shape), condition, generator, initial_tokens, initial_mask, weak=weak)
        return self._finish(run, callback)

    @torch.no_grad()
    def sample_with_controlnet(
        self,
        decoder: MaskedDecoder,
        shape: Sequence[int],
        condition: Condition,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        controlnet: Callable[..., ControlResult],
        control: Any,
        control_strength: float = 1.0,
        control_guidance_scale: float = 0.0,
        initial_tokens: TokenGrid | None = None,
        initial_mask: TokenMask | None = None,
        callback: Callable[[SamplerState], None] | None = None,
        weak: MaskedDecoder | None = None,
    ) -> TokenGrid:
        """Return tokens as :meth:`sample` does, drawn under a control network.

        The unconditional branch of ``guidance_scale`` drops condition and control. The weaker decoder is compared with
        this one without control, which costs a further branch.

        Args:
            controlnet: called at each step as ``controlnet(tokens, mask, prepared, control, rows=rows)``, for the
                residuals and logit adjustments of the base.
            control: its encoded condition, with ``unconditional()`` and ``cat(other)``; slices along the batch.
            control_strength: factor of all that it adds; 0 gives the tokens of :meth:`sample`, bit for bit.
            control_guidance_scale: factor of the difference between the predictions with and without control that is
                added, inside of ``guidance_interval``.
            others: see :meth:`sample`.
        """
        steer = Control(controlnet, control, control_strength, control_guidance_scale)
        run = _Run(
            self, decoder, tuple(shape), condition, generator, initial_tokens, initial_mask, steer, weak
        )
        return self._finish(run, callback)

    def _finish(self, run: "_Run", callback: Callable[[SamplerState], None] | None) -> TokenGrid:
        for step in range(self.steps):
            if run.reveal(step) and callback is not None:
                callback(SamplerState(step + 1, self.steps, run.tokens, run.mask))
        return run.tokens

    @property
    def evaluations(self) -> int:
        """Evaluations of networks per sample, each branch of guidance counted, without control.

        Fewer if a step has nothing to reveal.
        """
        branches = (self.guidance_scale != 0.0) + (self.autoguidance_scale != 0.0)
        return self.steps + sum(ramp > 0 for ramp in self.guidance_ramp()) * branches

    def guidance_ramp(self) -> list[float]:
        """Return for each step the share of the guidance scale that is applied; 0 outside of the interval."""
        start, end = self.guidance_interval
        guided = [start <= step / self.steps < end for step in range(self.steps)]
        ramp = GUIDANCE_SCHEDULES[self.guidance_schedule]
        return [
            ramp(sum(guided[: step + 1]) / sum(guided)) if now else 0.0 for step, now in enumerate(guided)
        ]


class _Run:
    """The state of one call of ``MaskGiTSampler.sample`` or ``sample_with_controlnet``."""

    def __init__(
        self,
        sampler: MaskGiTSampler,
        decoder: MaskedDecoder,
        shape: tuple[int, ...],
        condition: Condition,
        generator: torch.Generator | Sequence[torch.Generator],
        initial_tokens: Tensor | None,
        initial_mask: Tensor | None,
        control: Control | None = None,
        weak: MaskedDecoder | None = None,
    ) -> None:
        scale = sampler.autoguidance_scale
        if scale and weak is None:
            raise ValueError(
                f"weak: expected a weaker decoder for autoguidance_scale {scale}, got None; pass one, or set it to 0"
            )
        if (initial_tokens is None) != (initial_mask is None):
            raise ValueError("initial_tokens, initial_mask: expected together, got one; give both or neither")
        require_one_each(condition, shape[0])
        self.sampler = sampler
        self.batch, self.length = shape[0], math.prod(shape[1:])
        self.num_groups = len(decoder.vocabulary.sizes)
        self.device = device = condition.device
        self.generators = _one_each(generator, self.batch)
        if initial_tokens is None or initial_mask is None:
            self.mask = torch.ones(shape, dtype=torch.bool, device=device)
            self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
            self.totals = [self.length] * self.batch
        else:
            if tuple(initial_tokens.shape) != shape or tuple(initial_mask.shape) != shape:
                raise ValueError(
                    f"initial_tokens, initial_mask: expected shape {shape}, got {tuple(initial_tokens.shape)} and "
                    f"{tuple(initial_mask.shape)}; encode the volume on the same grid"
                )
            # Both are written to by flattened index and must be contiguous.
            self.mask = initial_mask.to(device, copy=True).contiguous()
            self.tokens = initial_tokens.to(device).contiguous().masked_fill(self.mask, 0)
            # Digits of a larger number would be those of another token.
            require_below(self.tokens, decoder.vocabulary.vocab_size, "initial_tokens")
            # Waits for the device once per run: the counts decide shapes.
            self.totals = self.mask.flatten(1).sum(1).tolist()
        # Given tokens are never drawn, and so never remasked.
        self.drawable = self.mask.flatten(1).clone()
        self.hidden = self._schedule()
        self.branches = Branches(
            decoder,
            condition,
            batch=self.batch,
            ramps=sampler.guidance_ramp(),
            scale=sampler.guidance_scale,
            control=control,
            weak=None if weak is None or not scale else Weak(weak, scale),
        )
        self.queue = None
        if sampler.order in FIXED_ORDERS:
            orders = draw_orders(sampler.order, shape[1:], self.generators, device)  # pyrefly: ignore[bad-argument-type]
            self.queue = RevealQueue(orders, self.drawable, self.totals)
            # Without remasking each cell is drawn once, and so are its numbers.
            self.uniform = self._uniform(self.num_groups).flatten(0, 1)

    def _uniform(self, columns: int, needed: Sequence[bool] | None = None) -> Tensor:
        """Return ``[B L columns]`` numbers in [0, 1), each sample's from its own generator.

        needed: False where a sample has nothing to draw. Its generator is then not advanced, as if the sample were
        drawn alone.
        """
        size = (self.length, columns)
        draws = [
            torch.rand(size, generator=g, device=g.device) if wanted else torch.zeros(size, device=g.device)
            for g, wanted in zip(self.generators, needed or [True] * self.batch, strict=True)
        ]
        return torch.stack(draws).to(self.device)

    def _schedule(self) -> list[list[int]]:
        """Return how many tokens of each sample are hidden at the start of each step and at the end."""
        times = torch.arange(self.sampler.steps + 1, dtype=torch.float64) / self.sampler.steps
        hidden = {n: self.sampler.scheduler.num_hidden(times, n).tolist() for n in set(self.totals)}
        return [[hidden[n][step] for n in self.totals] for step in range(self.sampler.steps + 1)]

    def reveal(self, step: int) -> bool:
        """Draw the tokens of one step and hide those remasked; False if there is nothing to reveal."""
        before, after = self.hidden[step], self.hidden[step + 1]
        remasked = [self._num_remasked(*counts) for counts in zip(self.totals, before, after, strict=True)]
        revealed = [b - a + r for b, a, r in zip(before, after, remasked, strict=True)]
        if not any(revealed):
            return False
        forgotten = self._forgotten(remasked)
        if self.queue is None:
            rows, drawn = self._most_confident(step, revealed)
        else:
            rows = torch.cat([cells + b * self.length for b, cells in enumerate(self.queue.take(revealed))])
            drawn = self._predict(step, rows).draw(self.uniform[rows], **self._softmax()).tokens
        self.tokens.view(-1)[rows] = drawn
        self.mask.view(-1)[rows] = False
        for b, cells, fresh in forgotten:
            self._hide(b, cells, fresh)
        return True

    def _num_remasked(self, total: int, before: int, after: int) -> int:
        """Return how many shown tokens a step hides again.

        ReMDM hides each with probability η·min(1, (1 − α_s)/α_t), where α is the share shown now (t) and after the
        step (s). This is the expected number, rounded; it never exceeds the number that can be revealed instead.
        """
        return round(self.sampler.remasking * min(total - before, after))

    def _forgotten(self, counts: list[int]) -> list[tuple[int, Tensor, Tensor]]:
        """Return which tokens drawn before this step to hide: sample, cells and their new random numbers."""
        chosen = []
        for b, (count, g) in enumerate(zip(counts, self.generators, strict=True)):
            if count:
                fresh = torch.rand(self.length, self.num_groups + 2, generator=g, device=g.device)
                fresh = fresh.to(self.device)
                shown = self.drawable[b] & ~self.mask[b].flatten()
                cells = fresh[:, -1].masked_fill(~shown, -1.0).topk(count).indices
                chosen.append((b, cells, fresh[cells]))
        return chosen

    def _hide(self, sample: int, cells: Tensor, fresh: Tensor) -> None:
        rows = cells + sample * self.length
        self.tokens.view(-1)[rows] = 0
        self.mask.view(-1)[rows] = True
        if self.queue is not None:
            self.queue.insert(sample, cells, fresh[:, -2])
            self.uniform[rows] = fresh[:, : self.num_groups]

    def _most_confident(self, step: int, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Draw every hidden token and keep the most likely ones; annealed noise perturbs the ranking."""
        uniform = self._uniform(self.num_groups + 1, [count > 0 for count in counts]).flatten(0, 1)
        rows = positions(self.mask, sum(self.hidden[step]))
        draw = self._predict(step, rows).draw(uniform[rows, : self.num_groups], **self._softmax())
        noise = self.sampler.gumbel_temperature * (1 - (step + 1) / self.sampler.steps)
        gumbel = -torch.log(-torch.log(uniform[rows, self.num_groups].clamp_min(1e-20)))
        ranking = (draw.log_prob + noise * gumbel).split(self.hidden[step])
        start, kept = 0, []
        for scores, count in zip(ranking, counts, strict=True):
            kept.append(scores.topk(count).indices + start)
            start += len(scores)
        index = torch.cat(kept)
        return rows[index], draw.tokens[index]

    def _softmax(self) -> dict[str, float]:
        return {"temperature": self.sampler.temperature, "top_p": self.sampler.top_p}

    def _predict(self, step: int, rows: Tensor) -> TokenLogits:
        return self.branches.predict(step, self.tokens, self.mask, rows)


def _one_each(
    generator: torch.Generator | Sequence[torch.Generator], batch: int
) -> Sequence[torch.Generator]:
    if isinstance(generator, torch.Generator):
        drawing = host_generator(generator)
        seeds = [int(torch.randint(2**63 - 1, (), generator=drawing)) for _ in range(batch)]
        return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
    if len(generator) != batch:
        raise ValueError(f"generator: expected one per sample ({batch}), got {len(generator)}; pass as many")
    return generator
