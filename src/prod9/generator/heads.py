"""What a decoder predicts: a distribution over FSQ tokens that factorises over groups of levels.

A token of V = L_1 · … · L_Z values is a tuple of digits, one a level. One group holding every level is the
usual softmax over V; several groups are independent given the hidden state, so 15360 logits become 304
(two groups, the published optimum: MaskBit, arXiv 2409.16211) or 35 (one group a level). Log-probabilities
of a token are exact sums over groups, so the dense view exists on demand and nothing else depends on the
choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prod9.types import Logits

Groups = Literal["balanced", "dense", "per_level"] | Sequence[Sequence[int]]

_BLOCK = 128
"""Width of a block of the two-level inverse CDF: near the square root of the vocabularies in use."""


def partition_levels(levels: Sequence[int], groups: Groups) -> tuple[tuple[int, ...], ...]:
    """Return the level indices of each group.

    ``balanced`` is the partition in two whose larger product is smallest, level 0 in the first group;
    explicit ``groups`` must hold each level once.
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
            f"groups must hold each of the level indices 0..{len(levels) - 1} exactly once, got {groups}; "
            "use 'balanced', 'dense', 'per_level' or a full partition."
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


class TokenVocabulary(nn.Module):
    """Tables between a token and its digits, one row a token; buffers that no checkpoint holds.

    levels: number of values of each FSQ level, first level fastest in the token index.
    groups: see ``partition_levels``.
    """

    codes: Tensor
    digits: Tensor
    members: Tensor

    def __init__(self, *, levels: Sequence[int], groups: Groups) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        self.groups = partition_levels(self.levels, groups)
        self.sizes = tuple(math.prod(self.levels[i] for i in group) for group in self.groups)
        self.vocab_size = math.prod(self.levels)
        self.num_logits = sum(self.sizes)
        digits = self._digits_of_all()
        sides = torch.tensor(self.levels)
        # Digits centred and of unit variance under uniform use: an affine image of the FSQ codes, the same
        # for both of its rounding conventions. A level of one value carries nothing and stays 0.
        scale = ((sides.double() ** 2 - 1) / 12).sqrt().clamp_min(1e-6)
        codes = ((digits - (sides - 1) / 2) / scale).float()
        members = torch.stack([self._group_index(digits, group) for group in self.groups], dim=1)
        self.register_buffer("digits", digits, persistent=False)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("members", members, persistent=False)
        for g, (group, size) in enumerate(zip(self.groups, self.sizes, strict=True)):
            self.register_buffer(f"offsets_{g}", self._token_offsets(group, size), persistent=False)

    def _digits_of_all(self) -> Tensor:
        token, columns = torch.arange(self.vocab_size), []
        for level in self.levels:
            columns.append(token % level)
            token = token // level
        return torch.stack(columns, dim=1)

    def _group_index(self, digits: Tensor, group: Sequence[int]) -> Tensor:
        index, basis = torch.zeros_like(digits[:, 0]), 1
        for i in group:
            index, basis = index + digits[:, i] * basis, basis * self.levels[i]
        return index

    def _token_offsets(self, group: Sequence[int], size: int) -> Tensor:
        """Return what each value of a group adds to the token index."""
        value, offset = torch.arange(size), torch.zeros(size, dtype=torch.int64)
        for i in group:
            offset = offset + value % self.levels[i] * math.prod(self.levels[:i])
            value = value // self.levels[i]
        return offset

    def join(self, values: Sequence[Tensor]) -> Int64[Tensor, "..."]:
        """Return tokens from one value a group."""
        offsets = [getattr(self, f"offsets_{g}")[value] for g, value in enumerate(values)]
        return torch.stack(offsets).sum(0)

    def group_digits(self, group: int) -> Int64[Tensor, "K levels"]:
        """Return the digits of each value of a group, one column a level of the group."""
        tokens = getattr(self, f"offsets_{group}")
        return self.digits[tokens][:, list(self.groups[group])]


@dataclass(frozen=True)
class Draw:
    """Drawn tokens and the log-probability of each under the distribution drawn from, before any nucleus."""

    tokens: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class TokenLogits:
    """Unnormalised log-probabilities ``[... K]``, K the sizes of all groups one after the other.

    The leading axes are ``[B h w d]``, or ``[R]`` when a decoder was asked for single rows.
    """

    values: Tensor
    vocabulary: TokenVocabulary

    def split(self) -> tuple[Tensor, ...]:
        """Return the float32 logits of each group."""
        return self.values.float().split(self.vocabulary.sizes, dim=-1)

    def rows(self, index: Int64[Tensor, " R"]) -> "TokenLogits":
        """Return the logits of some of the flattened positions."""
        return TokenLogits(self.values.flatten(0, -2).index_select(0, index), self.vocabulary)

    def guided(self, unconditional: "TokenLogits", scale: float) -> "TokenLogits":
        """Return classifier-free guidance: these logits plus ``scale`` times their lead.

        Logits add over groups, so this equals guidance of the dense view.
        """
        values = torch.lerp(unconditional.values.float(), self.values.float(), 1.0 + scale)
        return TokenLogits(values, self.vocabulary)

    def dense(self) -> Logits:
        """Return log-probabilities of every token, ``[B V h w d]``; needs the grid form."""
        parts = [logits.log_softmax(-1) for logits in self.split()]
        picked = (part[..., self.vocabulary.members[:, g]] for g, part in enumerate(parts))
        return torch.stack(list(picked)).sum(0).movedim(-1, 1)

    def log_prob(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of ``tokens``, shaped like them."""
        return -self.cross_entropy(tokens)

    def cross_entropy(
        self, tokens: Int64[Tensor, "..."], *, label_smoothing: float = 0.0
    ) -> Float[Tensor, "..."]:
        """Return the cross-entropy of each token in nats.

        Smoothing each group towards uniform by the same share is smoothing the joint distribution, since
        the uniform distribution over tokens is the product of the uniform ones over groups.
        """
        members = self.vocabulary.members[tokens.flatten()]
        losses = [
            F.cross_entropy(
                part.flatten(0, -2), members[:, g], reduction="none", label_smoothing=label_smoothing
            )
            for g, part in enumerate(self.split())
        ]
        return torch.stack(losses).sum(0).view(tokens.shape)

    def level_distance(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the expected distance to the true digits, summed over levels, each divided by L − 1.

        This is the Wasserstein-1 distance of each level's marginal to the truth: a neighbouring level
        costs less than a far one, which cross-entropy does not know.
        """
        truth = self.vocabulary.digits[tokens.flatten()]
        total = torch.zeros(truth.shape[0], device=truth.device)
        for g, part in enumerate(self.split()):
            probs = part.flatten(0, -2).softmax(-1)
            digits = self.vocabulary.group_digits(g)
            for column, level in enumerate(self.vocabulary.groups[g]):
                gap = (digits[None, :, column] - truth[:, level, None]).abs().float()
                total = total + (probs * gap).sum(-1) / max(self.vocabulary.levels[level] - 1, 1)
        return total.view(tokens.shape)

    def expected(self, values: Sequence[Tensor]) -> Float[Tensor, "... Z"]:
        """Return the mean of each level under the distribution; ``values [L]`` of its digits, one a level."""
        means: dict[int, Tensor] = {}
        for g, part in enumerate(self.split()):
            probs, digits = part.softmax(-1), self.vocabulary.group_digits(g)
            for column, level in enumerate(self.vocabulary.groups[g]):
                means[level] = probs @ values[level].to(probs)[digits[:, column]]
        return torch.stack([means[level] for level in range(len(values))], dim=-1)

    def mode(self) -> Int64[Tensor, "..."]:
        """Return the most likely token."""
        return self.vocabulary.join([part.argmax(-1) for part in self.split()])

    @property
    def confidence(self) -> Float[Tensor, "..."]:
        """Log-probability of the most likely token."""
        return torch.stack([part.amax(-1) - part.logsumexp(-1) for part in self.split()]).sum(0)

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
        """Draw by inverting the distribution function at ``uniform`` in [0, 1), one number a group.

        temperature: divides the logits. top_p: nucleus of each group: the smallest set of its most likely
        values that holds this share; 1 keeps all.
        """
        values, log_prob = [], torch.zeros(uniform.shape[:-1], device=uniform.device)
        for part, u in zip(self.split(), uniform.unbind(-1), strict=True):
            logits = part if temperature == 1.0 else part / temperature
            weights = (logits - logits.amax(-1, keepdim=True)).exp_()
            kept = weights if top_p == 1.0 else _nucleus(weights, top_p)
            value = _invert_cdf(kept.flatten(0, -2), u.flatten()).view(u.shape)
            chosen = weights.gather(-1, value[..., None])[..., 0]
            log_prob = log_prob + (chosen / weights.sum(-1)).log()
            values.append(value)
        return Draw(self.vocabulary.join(values), log_prob)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Zero what lies outside the smallest set of largest weights holding ``top_p`` of the sum."""
    ordered, index = weights.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * weights.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(weights).scatter_(-1, index, ordered)


def _invert_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return, for each row of ``weights [R K]``, the index at which its running sum passes ``uniform``.

    Exact where Gumbel noise in float32 is not (its uniforms end at 2^-24), and cheaper: long rows are
    summed block by block and the running sum is taken inside the one block that holds the answer. A value
    of weight 0 is never returned: float32 uniforms are at most 1 − 2^-24, so the point stays below the sum.
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
    # Sums taken in another order differ by rounding: keep the point below the sum of its block.
    point = torch.minimum(point - before, torch.nextafter(inner[:, -1:], inner.new_zeros(())))
    value = torch.searchsorted(inner, point, right=True)
    return (block * _BLOCK + value)[:, 0].clamp_max_(num_values - 1)
