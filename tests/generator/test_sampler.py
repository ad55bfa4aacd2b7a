"""MaskGiTSampler: counts, orders, guidance, inpainting, and its distribution against an exact oracle."""

import pytest
import torch

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.heads import TokenVocabulary
from prod9.generator.maskgit import SCHEDULES
from tests.draws import seeded
from tests.generator.oracles import FixedDecoder, MarkovChainOracle
from tests.generator.small import GRID, ORDERS, make_condition, make_generators, make_sampler


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scheduler_type", SCHEDULES)
def test_gamma_holds_exactly_at_every_step(fixed, order, scheduler_type):
    sampler, states = make_sampler(scheduler_type, steps=7, order=order), []
    condition, generators = make_condition(2), make_generators(2)
    final = sampler.sample(
        fixed, (2, *GRID), condition, generators,
        callback=lambda s: states.append((s.step, s.mask.clone(), s.tokens.clone())),
    )  # fmt: skip
    shown = torch.ones(2, *GRID, dtype=torch.bool)
    for step, mask, tokens in states:
        assert (mask.flatten(1).sum(1) == sampler.scheduler.num_hidden(step / 7, 48)).all()
        assert not (mask & ~shown).any(), "what was revealed stays revealed"
        assert torch.equal(tokens[~mask], final[~mask]), "and does not change"
        shown = mask
    assert states[-1][0] == 7
    assert not states[-1][1].any()
    assert final.dtype == torch.int64
    assert int(final.max()) < 12


@pytest.mark.parametrize("order", ORDERS)
def test_more_steps_than_tokens_costs_no_more_calls_than_tokens(fixed, order):
    sampler = make_sampler("cosine", steps=200, order=order)
    masks = []
    sampler.sample(
        fixed,
        (1, *GRID),
        make_condition(1),
        make_generators(1),
        callback=lambda s: masks.append(s.mask.sum()),
    )
    assert len(fixed.batches) <= 48
    assert masks[-1] == 0


@pytest.mark.parametrize("order", ["halton", "random"])
def test_a_fixed_order_asks_for_each_row_once(fixed, order):
    make_sampler(steps=6, order=order).sample(fixed, (2, *GRID), make_condition(2), make_generators(2))
    assert torch.equal(torch.cat(fixed.rows).sort().values, torch.arange(96))


def test_confidence_asks_for_the_hidden_rows_only(fixed):
    make_sampler("linear", steps=4, order="confidence").sample(
        fixed, (1, *GRID), make_condition(1), make_generators(1)
    )
    assert [len(rows) for rows in fixed.rows] == [48, 36, 24, 12]


def test_confidence_without_noise_reveals_the_likeliest_first():
    vocabulary = TokenVocabulary(levels=(5,), groups="dense")
    values = torch.zeros(1, 1, 8, 5)
    values[0, 0, :, 0] = torch.tensor([4.0, 1, 6, 2, 1.5, 7, 8, 2.5])
    masks = []
    make_sampler("linear", steps=2, order="confidence", gumbel_temperature=0.0, temperature=0.5).sample(
        FixedDecoder(values, vocabulary), (1, 1, 1, 8), make_condition(1), make_generators(1),
        callback=lambda s: masks.append(s.mask.clone()),
    )  # fmt: skip
    assert (~masks[0]).flatten().nonzero().flatten().tolist() == [0, 2, 5, 6]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 2.0, "guidance_interval": (0.25, 0.75)}])
def test_sample_k_is_the_same_whatever_the_batch(decoder, order, guidance):
    sampler = make_sampler(steps=5, order=order, **guidance)
    together = sampler.sample(decoder, (5, *GRID), make_condition(5), make_generators(5))
    again = sampler.sample(decoder, (5, *GRID), make_condition(5), make_generators(5))
    assert torch.equal(together, again)
    alone = [
        sampler.sample(
            decoder, (1, *GRID), MaskGiTCondition(label=torch.tensor([k % 3])), [make_generators(5)[k]]
        )
        for k in range(5)
    ]
    assert torch.equal(torch.cat(alone), together)
    assert len(torch.unique(together.flatten(1), dim=0)) == 5


def test_a_single_generator_serves_a_batch_and_a_longer_one_begins_alike(decoder):
    sampler = make_sampler(steps=3, order="halton")
    short, long = (sampler.sample(decoder, (n, *GRID), make_condition(n), seeded(7)) for n in (2, 4))
    assert torch.equal(short, long[:2])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_inpainting_never_changes_given_tokens(decoder, order, guidance_scale):
    generator = seeded(0)
    tokens = torch.randint(20, (3, *GRID), generator=generator)
    mask = torch.rand(3, *GRID, generator=generator) < torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    mask[0] = False
    sampler, seen = make_sampler(steps=5, order=order, guidance_scale=guidance_scale), []
    result = sampler.sample(
        decoder, (3, *GRID), make_condition(3), make_generators(3),
        tokens, mask, lambda s: seen.append(s.mask.clone()),
    )  # fmt: skip
    assert torch.equal(result[~mask], tokens[~mask])
    assert not torch.equal(result[mask], tokens[mask])
    totals = mask.flatten(1).sum(1)
    for step, hidden in enumerate(seen, start=1):
        expected = [int(sampler.scheduler.num_hidden(step / 5, int(n))) for n in totals]
        assert hidden.flatten(1).sum(1).tolist() == expected


def test_nothing_to_inpaint_calls_no_network(fixed):
    tokens = torch.zeros(1, *GRID, dtype=torch.int64)
    mask = torch.zeros(1, *GRID, dtype=torch.bool)
    result = make_sampler().sample(fixed, (1, *GRID), make_condition(1), make_generators(1), tokens, mask)
    assert torch.equal(result, tokens)
    assert not fixed.batches


def test_both_branches_run_in_one_batch_and_only_inside_the_interval(fixed):
    sampler = make_sampler(
        "linear", steps=8, order="halton", guidance_scale=1.0, guidance_interval=(0.25, 0.5)
    )
    sampler.sample(fixed, (3, *GRID), make_condition(3), make_generators(3))
    assert fixed.batches == [3, 3, 6, 6, 3, 3, 3, 3]


def test_guidance_sharpens_the_draws_against_the_unconditional():
    vocabulary = TokenVocabulary(levels=(2,), groups="dense")
    decoder = FixedDecoder(torch.tensor([0.0, 1.0]).expand(10, 10, 10, 2), vocabulary)
    for scale in (0.0, 1.0, 3.0):
        sampler = make_sampler(steps=4, order="random", guidance_scale=scale)
        share = (
            sampler.sample(decoder, (4, 10, 10, 10), make_condition(4), make_generators(4)).double().mean()
        )
        assert float(share) == pytest.approx(float(torch.sigmoid(torch.tensor(1 + scale))), abs=0.02)


def total_variation(scheduler_type, order):
    oracle, batch = MarkovChainOracle(10, stay=0.93), 8_000
    sampler = make_sampler(scheduler_type, steps=4, order=order)
    condition = MaskGiTCondition(label=torch.zeros(batch, dtype=torch.int64))
    tokens = sampler.sample(oracle, (batch, 1, 1, 10), condition, seeded(0))
    index = tokens.flatten(1) @ 2 ** torch.arange(9, -1, -1)
    drawn = torch.bincount(index, minlength=1024).double() / batch
    return float((drawn - oracle.probabilities()).abs().sum() / 2)


def test_schedule_and_order_decide_the_error_of_a_perfect_network():
    # As many exact draws are 0.04 away from the truth.
    assert total_variation("cosine", "halton") < 0.15
    assert total_variation("linear", "random") > 0.2


def test_one_token_a_step_draws_from_the_exact_distribution():
    oracle, batch = MarkovChainOracle(4, stay=0.8), 4_000
    sampler = make_sampler("linear", steps=4, order="random")
    condition = MaskGiTCondition(label=torch.zeros(batch, dtype=torch.int64))
    tokens = sampler.sample(oracle, (batch, 1, 1, 4), condition, seeded(0))
    counts = torch.bincount(tokens.flatten(1) @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    expected = oracle.probabilities() * batch
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # χ², 15 degrees, p = 0.001


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"order": "raster"}, "order: expected confidence or halton or random"),
        ({"steps": 0}, "steps, temperature, top_p: expected"),
        ({"temperature": 0.0}, "steps, temperature, top_p: expected"),
        ({"top_p": 0.0}, "top_p"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
    ],
)
def test_settings_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(**kwargs)


def test_a_wrong_call_is_refused(fixed):
    sampler, condition = make_sampler(), make_condition(2)
    tokens = torch.zeros(2, *GRID, dtype=torch.int64)
    with pytest.raises(ValueError, match="one per sample"):
        sampler.sample(fixed, (2, *GRID), condition, make_generators(3))
    with pytest.raises(ValueError, match="together"):
        sampler.sample(fixed, (2, *GRID), condition, make_generators(2), initial_tokens=tokens)
    with pytest.raises(ValueError, match="same grid"):
        sampler.sample(fixed, (2, *GRID), condition, make_generators(2), tokens[:1], tokens[:1] > 0)
