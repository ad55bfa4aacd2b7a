"""The output of a decoder: a distribution over FSQ tokens that factorises over groups of levels.

A token, one of V = L_1 · … · L_Z values, is a tuple of digits, one per level. One group of all levels is the usual
softmax over V. With several groups 15360 logits become 304 (two groups, the published optimum: MaskBit, arXiv
2409.16211) or 35 (one group per level). Groups are independent given the hidden state, or coupled one after the other
(:mod:`prod9.generator.coupling`). The log-probability of a token is the sum over groups, so the dense distribution can
be computed when it is needed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prod9.generator.coupling import Chain, GroupCoupling
from prod9.types import Logits

Groups = Literal["balanced", "dense", "per_level"] | Sequence[Sequence[int]]

_MOST_VALUES = 2**20
"""The most values of one group of levels."""

_COLDEST = 1e-30
"""The lowest temperature of a draw."""

_BLOCK = 128
"""Width of a block of the two-level inverse CDF, near the square root of common vocabularies."""


def partition_levels(levels: Sequence[int], groups: Groups) -> tuple[tuple[int, ...], ...]:
    """Return the level indices of each group.

    ``balanced`` is the partition into two groups whose larger product is smallest; level 0 is in the first group.
    Explicit ``groups`` contain each level once.
    """
    every = range(len(levels))
    if groups == "dense":
        return (tuple(every),)
    if groups == "per_level":
        return tuple((i,) for i in every)
    if groups == "balanced":
        return _balanced(levels)
    result = tuple(tuple(int(i) for i in group) for group in groups)
    if sorted(i for group in result for i in group) != list(every) or not all(result):
        raise ValueError(
            f"groups: expected each of the level indices 0 to {len(levels) - 1} exactly once, got {groups}; "
            "use 'balanced', 'dense', 'per_level' or a full partition"
        )
    return result


def _balanced(levels: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    rest = range(1, len(levels))
    if not rest:
        return ((0,),)
    firsts = [(0, *c) for size in range(len(rest)) for c in combinations(rest, size)]

    def larger_product(first: tuple[int, ...]) -> int:
        one = math.prod(levels[i] for i in first)
        return max(one, math.prod(levels) // one)

    first = min(firsts, key=larger_product)
    return first, tuple(i for i in rest if i not in first)


def _strides(sides: Sequence[int]) -> Tensor:
    """Return the weight of each digit of mixed-radix numbers, first digit fastest."""
    return torch.tensor([math.prod(sides[:i]) for i in range(len(sides))])


def _digits(sides: Sequence[int]) -> Tensor:
    """Return the digits of all mixed-radix numbers, one row per number."""
    return torch.arange(math.prod(sides))[:, None] // _strides(sides) % torch.tensor(sides)


class TokenVocabulary(nn.Module):
    """Converts between tokens, digits and codes by arithmetic: no table grows with the number of tokens.

    levels: number of values of each FSQ level; the first level is the fastest in the token index. groups: see
    ``partition_levels``; no group may have more than 2^20 values, each of which is a logit.

    Example:
        >>> from prod9.generator.heads import TokenVocabulary
        >>> vocabulary = TokenVocabulary(levels=[8, 8, 8, 6, 5], groups="balanced")
        >>> vocabulary.sizes, vocabulary.num_logits, vocabulary.vocab_size
        ((64, 240), 304, 15360)
    """

    strides: Tensor
    sides: Tensor
    starts: Tensor
    code_table: Tensor

    def __init__(self, *, levels: Sequence[int], groups: Groups) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        self.groups = partition_levels(self.levels, groups)
        self.sizes = tuple(math.prod(self.levels[i] for i in group) for group in self.groups)
        if max(self.sizes) > _MOST_VALUES:
            raise ValueError(
                f"groups: expected at most {_MOST_VALUES} values per group of levels, each of which is a logit, "
                f"got {max(self.sizes)}; use 'per_level'"
            )
        self.vocab_size = math.prod(self.levels)
        self.num_logits = sum(self.sizes)
        strides, sides = _strides(self.levels), torch.tensor(self.levels)
        # Digits with mean 0 and variance 1 under uniform use: affine functions of the FSQ codes, the same for both
        # rounding conventions. A level of one value is always 0.
        scale = ((sides.double() ** 2 - 1) / 12).sqrt().clamp_min(1e-6)
        codes = [(torch.arange(level) - (level - 1) / 2) / scale[i] for i, level in enumerate(self.levels)]
        for g, group in enumerate(map(list, self.groups)):
            own = [self.levels[i] for i in group]
            # The contribution of each value of the group to the token.
            self.register_buffer(f"offsets_{g}", (_digits(own) * strides[group]).sum(1), persistent=False)
            self.register_buffer(f"strides_{g}", _strides(own), persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("sides", sides, persistent=False)
        self.register_buffer("starts", sides.cumsum(0) - sides, persistent=False)
        self.register_buffer("code_table", torch.cat(codes).float(), persistent=False)

    def digits(self, tokens: Int64[Tensor, "..."]) -> Int64[Tensor, "... Z"]:
        """Return the digit of each level."""
        return tokens[..., None] // self.strides % self.sides

    def codes(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... Z"]:
        """Return the digits scaled to mean 0 and variance 1 under uniform use, float32."""
        return F.embedding(self.digits(tokens) + self.starts, self.code_table[:, None])[..., 0]

    def members(self, tokens: Int64[Tensor, "..."]) -> Int64[Tensor, "... G"]:
        """Return the value of each group; the inverse of ``join``."""
        digits = self.digits(tokens)
        values = [
            (_columns(digits, group) * getattr(self, f"strides_{g}")).sum(-1)
            for g, group in enumerate(self.groups)
        ]
        return torch.stack(values, dim=-1)

    def join(self, values: Sequence[Tensor]) -> Int64[Tensor, "..."]:
        """Return tokens from one value per group."""
        offsets = [getattr(self, f"offsets_{g}")[value] for g, value in enumerate(values)]
        return torch.stack(offsets).sum(0)

    def group_digits(self, group: int) -> Int64[Tensor, "K levels"]:
        """Return the digits of each value of a group, one column per level of the group."""
        return _columns(self.digits(getattr(self, f"offsets_{group}")), self.groups[group])


def _columns(digits: Tensor, levels: Sequence[int]) -> Tensor:
    # A list as index would be copied to the device, and the host would wait for it.
    return torch.stack([digits[..., level] for level in levels], dim=-1)


@dataclass(frozen=True)
class Draw:
    """Drawn tokens and the log-probability of each, under the distribution before the nucleus is cut."""

    tokens: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class TokenLogits:
    """Unnormalised log-probabilities ``[... K]``, the groups one after the other.

    The leading axes are ``[B h w d]``, or ``[R]`` where a decoder was called with ``rows``.

    Attributes:
        values: the logits of each group by itself.
        vocabulary: of the tokens.
        coupling: corrects the logits of a group by the values of those before it; None for independent groups.
        terms: weights and predictions of which these logits are a sum (guidance); empty for a single prediction.
    """

    values: Tensor
    vocabulary: TokenVocabulary
    coupling: GroupCoupling | None = None
    terms: tuple[tuple[float, "TokenLogits"], ...] = ()

    def split(self) -> tuple[Tensor, ...]:
        """Return the float32 logits of each group by itself."""
        return self.values.float().split(self.vocabulary.sizes, dim=-1)

    def chain(self) -> Chain:
        """Return the logits of each group given those before it, which independent groups don't depend on."""
        terms = self.terms or ((1.0, self),)
        return Chain([(w, t.values.float(), t.coupling) for w, t in terms], self.vocabulary.sizes)

    @property
    def marginal(self) -> "TokenLogits":
        """These logits with independent groups."""
        return TokenLogits(self.values, self.vocabulary)

    def rows(self, index: Int64[Tensor, " R"]) -> "TokenLogits":
        """Return the logits of some of the flattened positions."""
        return self._with(lambda values: values.flatten(0, -2).index_select(0, index))

    def chunk(self, count: int) -> "list[TokenLogits]":
        """Return ``count`` equal parts along the first axis."""
        return [TokenLogits(v, self.vocabulary, self.coupling) for v in self.values.chunk(count)]

    def plus(self, values: Float[Tensor, "... K"]) -> "TokenLogits":
        """Return these logits with ``values`` added to those of each group by itself."""
        return self._with(lambda own: own + values.to(own.dtype))

    def guided(self, unconditional: "TokenLogits", scale: float) -> "TokenLogits":
        """Return classifier-free guidance: these logits plus ``scale`` times their difference to ``unconditional``.

        Logits add over groups, so this equals guidance of the dense distribution. Coupled groups are guided one after
        the other, each given the same values of those before it.
        """
        values = torch.lerp(unconditional.values.float(), self.values.float(), 1.0 + scale)
        return self._sum(values, ((1.0 + scale, self), (-scale, unconditional)))

    def led(self, ahead: "TokenLogits", behind: "TokenLogits", scale: float) -> "TokenLogits":
        """Return these logits plus ``scale`` times the difference of ``ahead`` to ``behind``."""
        values = self.values.float() + scale * (ahead.values.float() - behind.values.float())
        return self._sum(values, ((1.0, self), (scale, ahead), (-scale, behind)))

    def _sum(self, values: Tensor, parts: Sequence[tuple[float, "TokenLogits"]]) -> "TokenLogits":
        """Return the weighted sum of ``parts``, whose own values sum to ``values``."""
        if all(part.coupling is None for _, part in parts):
            return TokenLogits(values, self.vocabulary)
        terms = [(w * own, term) for w, part in parts for own, term in part.terms or ((1.0, part),)]
        return TokenLogits(values, self.vocabulary, self.coupling, tuple(terms))

    def dense(self) -> Logits:
        """Return log-probabilities of every token, ``[B V h w d]``, of logits ``[B h w d K]``, where V is small."""
        every = torch.arange(self.vocabulary.vocab_size, device=self.values.device)
        lead = self.values.shape[:-1]
        wide = self._with(lambda values: values[..., None, :].expand(*lead, len(every), -1))
        return wide.log_prob(every.expand(*lead, -1)).movedim(-1, 1)

    def log_prob(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of ``tokens``, shaped like them."""
        return -self.cross_entropy(tokens)

    def cross_entropy(
        self, tokens: Int64[Tensor, "..."], *, label_smoothing: float = 0.0
    ) -> Float[Tensor, "..."]:
        """Return the cross-entropy of each token in nats.

        Smoothing each group by the same share smooths the joint distribution, since the uniform distribution over
        tokens is the product of those over groups.
        """
        members = self.vocabulary.members(tokens)
        losses = [
            F.cross_entropy(
                part.flatten(0, -2),
                members[..., g].flatten(),
                reduction="none",
                label_smoothing=label_smoothing,
            )
            for g, part in enumerate(self._given(members))
        ]
        return torch.stack(losses).sum(0).view(tokens.shape)

    def level_distance(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the expected distance to the true digits, summed over levels, each divided by L − 1.

        This is the Wasserstein-1 distance of each level's marginal to the true digit, given the true values of earlier
        groups if they are coupled. Unlike cross-entropy, it is smaller for neighbouring levels than for distant ones.
        """
        truth = self.vocabulary.digits(tokens.flatten())
        total = torch.zeros(truth.shape[0], device=truth.device)
        for g, part in enumerate(self._given(self.vocabulary.members(tokens))):
            probs = part.flatten(0, -2).softmax(-1)
            digits = self.vocabulary.group_digits(g)
            for column, level in enumerate(self.vocabulary.groups[g]):
                gap = (digits[None, :, column] - truth[:, level, None]).abs().float()
                total = total + (probs * gap).sum(-1) / max(self.vocabulary.levels[level] - 1, 1)
        return total.view(tokens.shape)

    def expected(self, values: Sequence[Tensor]) -> Float[Tensor, "... Z"]:
        """Return the mean of each level under its marginal; ``values`` has one tensor ``[L]`` per level."""
        means: dict[int, Tensor] = {}
        for g, part in enumerate(self.split()):
            probs, digits = part.softmax(-1), self.vocabulary.group_digits(g)
            for column, level in enumerate(self.vocabulary.groups[g]):
                means[level] = probs @ values[level].to(probs)[digits[:, column]]
        return torch.stack([means[level] for level in range(len(values))], dim=-1)

    def mode(self) -> Int64[Tensor, "..."]:
        """Return the most likely token; of coupled groups the most likely values one after the other."""
        chain, values = self.chain(), []
        for g in range(len(self.vocabulary.sizes)):
            values.append(chain.logits(g).argmax(-1))
            chain.add(g, values[-1])
        return self.vocabulary.join(values)

    def sample(
        self,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Int64[Tensor, "..."]:
        """Draw tokens; a sequence holds one generator for each index of the first axis."""
        *lead, _ = self.values.shape
        num_groups = len(self.vocabulary.sizes)
        if isinstance(generator, torch.Generator):
            uniform = torch.rand(*lead, num_groups, generator=generator, device=generator.device)
        else:
            draws = [torch.rand(*lead[1:], num_groups, generator=g, device=g.device) for g in generator]
            uniform = torch.stack(draws)
        return self.draw(uniform.to(self.values.device), temperature=temperature, top_p=top_p).tokens

    def draw(self, uniform: Float[Tensor, "... G"], *, temperature: float = 1.0, top_p: float = 1.0) -> Draw:
        """Draw by inverting the distribution function at ``uniform`` in [0, 1), one number per group.

        temperature: divides the logits. top_p: nucleus of each group, the smallest set of its most likely values with
        this share of the probability; 1 keeps all.
        """
        # Lower ones draw the mode just as surely, and the quotient would be infinite.
        temperature = max(temperature, _COLDEST)
        values, log_prob = [], torch.zeros(uniform.shape[:-1], device=uniform.device)
        chain = self.chain()
        for g, u in enumerate(uniform.unbind(-1)):
            part = chain.logits(g)
            logits = part if temperature == 1.0 else part / temperature
            weights = (logits - logits.amax(-1, keepdim=True)).exp_()
            kept = weights if top_p == 1.0 else _nucleus(weights, top_p)
            value = _invert_cdf(kept.flatten(0, -2), u.flatten()).view(u.shape)
            chosen = weights.gather(-1, value[..., None])[..., 0]
            log_prob = log_prob + (chosen / weights.sum(-1)).log()
            values.append(value)
            chain.add(g, value)
        return Draw(self.vocabulary.join(values), log_prob)

    def _given(self, members: Int64[Tensor, "... G"]) -> Iterator[Tensor]:
        """Yield the logits of each group given the values ``members`` of those before it."""
        chain = self.chain()
        for g in range(len(self.vocabulary.sizes)):
            yield chain.logits(g)
            chain.add(g, members[..., g])

    def _with(self, change: Callable[[Tensor], Tensor]) -> "TokenLogits":
        """Return these logits with the values of every prediction changed alike."""
        terms = tuple((weight, term._with(change)) for weight, term in self.terms)
        return TokenLogits(change(self.values), self.vocabulary, self.coupling, terms)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Set weights to 0 outside of the smallest set of largest weights with the share ``top_p`` of the sum."""
    ordered, index = weights.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * weights.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(weights).scatter_(-1, index, ordered)


def _invert_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return, for each row of ``weights [R K]``, the index at which its running sum exceeds ``uniform`` of the total.

    Cheaper than Gumbel noise, and exact where that is not (float32 uniforms end at 2^-24). Long rows are summed by
    blocks, and the running sum is computed inside of the block with the answer only. A value of weight 0 is never
    returned: float32 uniforms are at most 1 − 2^-24, so the point stays below the sum.
    """
    num_values = weights.shape[1]
    if num_values <= 4 * _BLOCK:
        sums = weights.cumsum(1)
        point = uniform[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, point, right=True)[:, 0].clamp_max_(num_values - 1)
    padded = F.pad(weights, (0, -num_values % _BLOCK)) if num_values % _BLOCK else weights
    blocks = padded.unflatten(1, (-1, _BLOCK))
    sums = blocks.sum(2).cumsum(1)
    point = uniform[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, point, right=True).clamp_max_(sums.shape[1] - 1)
    before = F.pad(sums, (1, 0)).gather(1, block)
    rows = torch.arange(len(weights), device=weights.device)
    inner = blocks[rows, block[:, 0]].cumsum(1)
    # Sums in another order differ by rounding: keep the point below the sum of its block.
    point = torch.minimum(point - before, torch.nextafter(inner[:, -1:], inner.new_zeros(())))
    value = torch.searchsorted(inner, point, right=True)
    return (block * _BLOCK + value)[:, 0].clamp_max_(num_values - 1)
