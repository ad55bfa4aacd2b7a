"""TokenLogits: every view of the factorised distribution agrees with the dense one."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from prod9.generator.heads import TokenLogits, TokenVocabulary, partition_levels
from tests.draws import seeded

LEVELS = (4, 3, 5)
PARTITIONS = ("balanced", "dense", "per_level", [[0, 2], [1]], [[2], [1, 0]])


EVERY = torch.arange(60)


def make_logits(groups="balanced", lead=(2, 2, 3, 2), levels=LEVELS, seed=0, scale=2.0):
    vocabulary = TokenVocabulary(levels=levels, groups=groups)
    generator = seeded(seed)
    return TokenLogits(scale * torch.randn(*lead, vocabulary.num_logits, generator=generator), vocabulary)


@pytest.mark.parametrize("groups", PARTITIONS)
def test_expected_levels_are_those_of_the_dense_distribution(groups):
    logits = make_logits(groups)
    values = [torch.linspace(-1, 1, level) ** 3 for level in LEVELS]
    probs = logits.dense().exp().movedim(1, -1)
    digits = logits.vocabulary.digits(EVERY)
    expected = torch.stack([probs @ value[digits[:, i]] for i, value in enumerate(values)], -1)
    torch.testing.assert_close(logits.expected(values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "sizes"),
    [((8, 8, 8, 6, 5), (64, 240)), ((8, 6, 5, 5), (40, 30)), ((7,), (7,)), ((3, 3), (3, 3))],
)
def test_balanced_partition_has_the_smallest_larger_half(levels, sizes):
    groups = partition_levels(levels, "balanced")
    products = tuple(math.prod(levels[i] for i in group) for group in groups)
    assert products == sizes
    subsets = (c for r in range(1, len(levels)) for c in itertools.combinations(levels, r))
    best = min((max(math.prod(c), math.prod(levels) // math.prod(c)) for c in subsets), default=levels[0])
    assert max(products) == best


def test_number_of_logits_of_the_named_partitions():
    levels = (8, 8, 8, 6, 5)
    sizes = {
        g: TokenVocabulary(levels=levels, groups=g).num_logits for g in ("dense", "balanced", "per_level")
    }
    assert sizes == {"dense": 15360, "balanced": 304, "per_level": 35}


@pytest.mark.parametrize("groups", [[[0], [1]], [[0, 1], [1, 2]], [[0, 1, 2], []], [[0, 1, 3]]])
def test_partition_that_does_not_hold_each_level_once_is_refused(groups):
    with pytest.raises(ValueError, match="exactly once"):
        partition_levels(LEVELS, groups)


@pytest.mark.parametrize("groups", PARTITIONS)
def test_join_undoes_the_members_of_every_token(groups):
    vocabulary = TokenVocabulary(levels=LEVELS, groups=groups)
    assert torch.equal(vocabulary.join(list(vocabulary.members(EVERY).unbind(1))), EVERY)


def test_digits_are_mixed_radix_with_the_first_level_fastest():
    vocabulary = TokenVocabulary(levels=LEVELS, groups="balanced")
    assert torch.equal(vocabulary.digits(EVERY) @ torch.tensor([1, 4, 12]), EVERY)
    assert torch.allclose(vocabulary.codes(EVERY).mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(vocabulary.codes(EVERY).var(0, unbiased=False), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("levels", [(6,) * 10, (8,) * 12, (5, 7, 9, 11, 13, 6, 8, 5)])
def test_a_large_vocabulary_needs_no_table(levels):
    vocabulary = TokenVocabulary(levels=levels, groups="per_level")
    digits = torch.stack([torch.randint(n, (500,), generator=seeded(i)) for i, n in enumerate(levels)], 1)
    tokens = vocabulary.join(list(digits.unbind(1)))
    assert torch.equal(vocabulary.digits(tokens), digits)
    assert torch.equal(vocabulary.members(tokens), digits)
    assert sum(buffer.numel() for buffer in vocabulary.buffers()) < 600
    sides = torch.tensor(levels)
    codes = (digits - (sides - 1) / 2) / ((sides.double() ** 2 - 1) / 12).sqrt()
    assert torch.allclose(vocabulary.codes(tokens), codes.float())


def test_a_group_with_too_many_logits_is_refused():
    with pytest.raises(ValueError, match="use 'per_level'"):
        TokenVocabulary(levels=(6,) * 10, groups="dense")


def test_tables_are_no_part_of_a_checkpoint():
    assert not TokenVocabulary(levels=LEVELS, groups="balanced").state_dict()


@pytest.mark.parametrize("groups", PARTITIONS)
def test_dense_sums_to_one_and_is_the_product_of_the_groups(groups):
    logits = make_logits(groups)
    dense = logits.dense()
    assert dense.shape == (2, 60, 2, 3, 2)
    assert torch.allclose(dense.exp().sum(1), torch.ones(2, 2, 3, 2), atol=1e-5)
    parts = [part.softmax(-1) for part in logits.split()]
    for token in (0, 17, 59):
        members = logits.vocabulary.members(torch.tensor(token))
        product = math.prod(part[..., int(k)] for part, k in zip(parts, members, strict=True))
        assert torch.allclose(dense[:, token].exp(), product, atol=1e-6)


@pytest.mark.parametrize("groups", PARTITIONS)
def test_scores_equal_those_of_the_dense_view(groups):
    logits = make_logits(groups)
    dense = logits.dense()
    tokens = torch.randint(60, (2, 2, 3, 2), generator=seeded(1))
    assert torch.allclose(logits.log_prob(tokens), dense.gather(1, tokens[:, None])[:, 0], atol=1e-5)
    assert torch.equal(logits.mode(), dense.argmax(1))
    for smoothing in (0.0, 0.1, 1.0):
        ours = logits.cross_entropy(tokens, label_smoothing=smoothing)
        theirs = F.cross_entropy(dense, tokens, reduction="none", label_smoothing=smoothing)
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("groups", PARTITIONS)
def test_level_distance_is_the_expectation_under_the_dense_view(groups):
    logits = make_logits(groups, lead=(3,))
    tokens = torch.tensor([5, 0, 59])
    digits = logits.vocabulary.digits(EVERY).float()
    probs = torch.stack([logits.log_prob(torch.full((3,), t)).exp() for t in range(60)], 1)
    gaps = (digits[None] - digits[tokens][:, None]).abs() / (torch.tensor(LEVELS) - 1)
    assert torch.allclose(logits.level_distance(tokens), (probs[..., None] * gaps).sum((1, 2)), atol=1e-5)


def test_guidance_equals_guidance_of_the_dense_view():
    one, other = make_logits(seed=1), make_logits(seed=2)
    dense = one.dense() + 1.5 * (one.dense() - other.dense())
    assert torch.allclose(one.guided(other, 1.5).dense(), dense.log_softmax(1), atol=1e-4)
    assert torch.equal(one.guided(other, 0.0).values, one.values)


def test_rows_are_the_flattened_positions():
    logits = make_logits()
    index = torch.tensor([3, 0, 23])
    assert torch.equal(logits.rows(index).values, logits.values.view(24, -1)[index])


@pytest.mark.parametrize("groups", ["balanced", "dense", "per_level"])
def test_draws_follow_the_exact_softmax(groups):
    logits = make_logits(groups, lead=(1,))
    expected = logits.values.new_tensor([logits.log_prob(torch.tensor([t])).exp().item() for t in range(60)])
    many = TokenLogits(logits.values.expand(40_000, -1), logits.vocabulary)
    tokens = many.sample(seeded(0))
    counts = torch.bincount(tokens, minlength=60)
    assert chisquare(counts, expected.double() / expected.double().sum() * 40_000).pvalue > 1e-3


@pytest.mark.parametrize("size", [1500, 4096])
def test_long_rows_follow_the_exact_softmax(size):
    vocabulary = TokenVocabulary(levels=(size,), groups="dense")
    values = torch.randn(size, generator=seeded(0))
    values[::7] = -math.inf
    tokens = torch.cat([
        TokenLogits(values.expand(5_000, -1), vocabulary).sample(seeded(seed))
        for seed in range(10)
    ])  # fmt: skip
    counts = torch.bincount(tokens, minlength=size)
    probs = values.double().softmax(0)
    assert counts[probs == 0].sum() == 0
    common = probs > 0
    assert chisquare(counts[common], probs[common] * 50_000).pvalue > 1e-3


@given(st.integers(2, 1400), st.integers(0, 2**31))
def test_extreme_uniforms_stay_inside_the_support(size, seed):
    vocabulary = TokenVocabulary(levels=(size,), groups="dense")
    generator = seeded(seed)
    values = 30 * torch.randn(4, size, generator=generator)
    values = values.masked_fill(torch.rand(4, size, generator=generator) < 0.5, -math.inf)
    values[:, int(torch.randint(size, (), generator=generator))] = 0.0
    for u in (0.0, 0.5, 1 - 2**-24):
        tokens = TokenLogits(values, vocabulary).draw(torch.full((4, 1), u)).tokens
        assert torch.isfinite(values.gather(1, tokens[:, None])).all()


def test_draw_reports_the_log_probability_of_what_it_drew():
    logits = make_logits()
    draw = logits.draw(torch.rand(2, 2, 3, 2, 2, generator=seeded(0)))
    assert torch.allclose(draw.log_prob, logits.log_prob(draw.tokens), atol=1e-5)


def test_low_temperature_draws_the_mode():
    logits = make_logits()
    assert torch.equal(logits.sample(seeded(0), temperature=1e-3), logits.mode())


def test_nucleus_keeps_the_smallest_set_that_holds_the_share():
    vocabulary = TokenVocabulary(levels=(4,), groups="dense")
    values = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, -1)
    generator = seeded(0)
    for top_p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        tokens = TokenLogits(values, vocabulary).sample(generator, top_p=top_p)
        assert set(tokens.tolist()) == kept


def test_one_generator_a_sample_makes_draws_independent_of_the_batch():
    logits = make_logits()
    together = logits.sample([seeded(k) for k in range(2)])
    for k in range(2):
        alone = TokenLogits(logits.values[k : k + 1], logits.vocabulary)
        assert torch.equal(alone.sample([seeded(k)])[0], together[k])
