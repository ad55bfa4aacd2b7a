"""Groups of levels that depend on each other within a token."""

import itertools
import math

import pytest
import torch

from prod9.generator.coupling import GroupCoupling
from prod9.generator.heads import TokenLogits, TokenVocabulary

LEVELS = (4, 3, 5)
EVERY = torch.arange(60)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def coupled(lead=(7,), seed=0, scale=2.0, coupling=None):
    vocabulary = TokenVocabulary(levels=LEVELS, groups="per_level")
    values = scale * torch.randn(*lead, vocabulary.num_logits, generator=seeded(seed))
    return TokenLogits(values, vocabulary, coupling or strong_coupling())


def table(logits):
    """Return the log-probability of every token on a new last axis."""
    lead = logits.values.shape[:-1]
    return torch.stack([logits.log_prob(torch.full(lead, token)) for token in range(60)], -1)


def strong_coupling(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coupling = GroupCoupling(sizes=LEVELS, channels=8)
    for parameter in coupling.parameters():
        parameter.data.mul_(3.0)
    return coupling.requires_grad_(False)


def test_probabilities_of_all_tokens_sum_to_one_and_are_the_product_of_conditionals():
    logits = coupled()
    dense = table(logits)
    assert torch.allclose(dense.exp().sum(1), torch.ones(7), atol=1e-5)
    coupling, parts = logits.coupling, logits.values.split(LEVELS, -1)
    for a, b, c in itertools.product(range(4), range(3), range(5)):
        state = coupling.context(logits.values)
        wanted = parts[0].log_softmax(-1)[:, a]
        state = state + coupling.drawn[0].weight[a]
        wanted = wanted + (parts[1] + coupling.read[0](torch.nn.functional.silu(state))).log_softmax(-1)[:, b]
        state = state + coupling.drawn[1].weight[b]
        wanted = wanted + (parts[2] + coupling.read[1](torch.nn.functional.silu(state))).log_softmax(-1)[:, c]
        assert torch.allclose(dense[:, a + 4 * b + 12 * c], wanted, atol=1e-5)


def test_draws_follow_the_coupled_distribution_and_not_the_product_of_marginals():
    one = coupled(lead=(1,))
    count = 60_000
    many = TokenLogits(one.values.expand(count, -1), one.vocabulary, one.coupling)
    draw = many.draw(torch.rand(count, 3, generator=seeded(5)))
    shares = torch.bincount(draw.tokens, minlength=60) / count
    truth = table(one).exp()[0]
    # The mean total variation of such a sample from its own distribution.
    floor = (truth * (1 - truth) / (count * math.pi / 2)).sqrt().sum() / 2
    assert 0.5 * (shares - truth).abs().sum() < 2 * floor
    independent = table(one.marginal).exp()[0]
    assert 0.5 * (independent - truth).abs().sum() > 20 * floor
    assert torch.allclose(draw.log_prob, many.log_prob(draw.tokens), atol=1e-4)


def test_an_untrained_coupling_changes_nothing():
    coupling = GroupCoupling(sizes=LEVELS, channels=8)
    coupling.initialise()
    logits = coupled(coupling=coupling)
    assert torch.allclose(table(logits), table(logits.marginal), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.7, -0.3])
def test_guidance_by_the_same_prediction_changes_nothing(scale):
    logits = coupled()
    assert torch.allclose(table(logits.guided(logits, scale)), table(logits), atol=1e-5)


def test_guidance_guides_each_conditional():
    one, other = coupled(seed=1), coupled(seed=2, coupling=strong_coupling(3))
    tokens = torch.randint(60, (7,), generator=seeded(4))
    guided = one.guided(other, 1.5)
    members = one.vocabulary.members(tokens)
    total = torch.zeros(7)
    for g, (a, b) in enumerate(zip(one._given(members), other._given(members), strict=True)):
        total += (a + 1.5 * (a - b)).log_softmax(-1).gather(-1, members[:, g, None])[:, 0]
    assert torch.allclose(guided.log_prob(tokens), total, atol=1e-4)
    again = guided.led(one, other, -1.5)
    assert torch.allclose(again.log_prob(tokens), one.log_prob(tokens), atol=1e-4)


def test_rows_chunks_and_sums_keep_the_coupling():
    logits = coupled(lead=(2, 3))
    index = torch.tensor([0, 5])
    assert torch.equal(table(logits.rows(index)), table(logits).flatten(0, 1)[index])
    assert torch.allclose(torch.cat([table(part) for part in logits.chunk(2)]), table(logits), atol=1e-6)
    added = torch.randn(2, 3, 12, generator=seeded(9))
    assert torch.allclose(table(logits.guided(logits.plus(added), 0.0)), table(logits), atol=1e-5)


def test_the_dense_view_is_that_of_every_token():
    logits = coupled(lead=(1, 2, 1, 2))
    assert torch.allclose(logits.dense().movedim(1, -1), table(logits), atol=1e-5)


def test_the_mode_takes_the_likeliest_value_after_those_before():
    logits = coupled()
    tokens = logits.mode()
    digits = logits.vocabulary.digits(tokens)
    for g, part in enumerate(logits._given(digits)):
        assert torch.equal(part.argmax(-1), digits[:, g])
    assert torch.equal(logits.draw(torch.rand(7, 3, generator=seeded(1)), temperature=1e-3).tokens, tokens)
