"""Decoders that are exact by construction: they plug into the sampler like any network."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prod9.generator.heads import TokenLogits, TokenVocabulary


class MarkovChainOracle:
    """Exact conditionals of a binary Markov chain: uniform start, ``stay`` is P(next = this)."""

    def __init__(self, length, stay):
        self.vocabulary = TokenVocabulary(levels=(2,), groups="dense")
        self.transition = torch.tensor([[stay, 1 - stay], [1 - stay, stay]], dtype=torch.float64)
        self.length = length

    def probabilities(self):
        """Return the probability of each of the 2^length sequences, first token most significant."""
        states = torch.tensor(list(itertools.product((0, 1), repeat=self.length)))
        return 0.5 * self.transition[states[:, :-1], states[:, 1:]].prod(1)

    def prepare(self, condition):
        return None

    def __call__(self, tokens, mask, prepared, residuals=None, rows=None):
        evidence = F.one_hot(tokens.flatten(1), 2).double()
        evidence = torch.where(mask.flatten(1)[..., None], 1.0, evidence)
        forward = [evidence[:, 0] * 0.5]
        backward = [torch.ones_like(forward[0])]
        for i in range(1, self.length):
            forward.append(forward[-1] @ self.transition * evidence[:, i])
            backward.append((backward[-1] * evidence[:, self.length - i]) @ self.transition.T)
        marginals = torch.stack(forward, 1) * torch.stack(backward[::-1], 1)
        logits = TokenLogits(marginals.log().float().view(*tokens.shape, 2), self.vocabulary)
        return logits if rows is None else logits.rows(rows)


class FixedDecoder:
    """Predicts the same given logits ``[h w d K]`` at every step; counts its calls and what it was shown."""

    def __init__(self, values, vocabulary):
        self.values, self.vocabulary = values, vocabulary
        self.batches, self.rows = [], []

    def prepare(self, condition):
        return condition.is_dropped

    def __call__(self, tokens, mask, prepared, residuals=None, rows=None):
        assert len(prepared) == len(tokens)
        self.batches.append(len(tokens))
        self.rows.append(rows)
        # The unconditional branch is uniform, so guidance is visible in the draws.
        values = self.values * (~prepared).float().view(-1, 1, 1, 1, 1)
        logits = TokenLogits(values, self.vocabulary)
        return logits if rows is None else logits.rows(rows)


class ToyCode:
    """An encoded control condition: one number a sample and whether it was dropped."""

    def __init__(self, values, dropped=None):
        self.values = values
        self.dropped = torch.zeros_like(values, dtype=torch.bool) if dropped is None else dropped

    def __len__(self):
        return len(self.values)

    def __getitem__(self, samples):
        return ToyCode(self.values[samples], self.dropped[samples])

    def cat(self, other):
        return ToyCode(torch.cat([self.values, other.values]), torch.cat([self.dropped, other.dropped]))

    def unconditional(self):
        return ToyCode(self.values, torch.ones_like(self.dropped))


@dataclass(frozen=True)
class ToyControlOutput:
    """Residuals of the base's blocks and adjustments of its logits."""

    residuals: tuple
    logits: TokenLogits | None


class ToyControlNet:
    """Adds its control's number to every residual and to the first logit; counts the batches it saw."""

    def __init__(self, vocabulary, num_residuals, positions, embed_dim):
        self.vocabulary, self.num_residuals = vocabulary, num_residuals
        self.positions, self.embed_dim = positions, embed_dim
        self.batches = []

    def __call__(self, tokens, mask, prepared, control, rows=None):
        assert len(control) == len(tokens)
        self.batches.append(len(tokens))
        told = control.values.masked_fill(control.dropped, 0.0)
        residual = told.view(-1, 1, 1).expand(-1, self.positions, self.embed_dim)
        values = torch.zeros(*tokens.shape, self.vocabulary.num_logits)
        values[..., 0] = told.view(-1, 1, 1, 1)
        logits = TokenLogits(values, self.vocabulary)
        return ToyControlOutput(
            (residual,) * self.num_residuals, logits if rows is None else logits.rows(rows)
        )
