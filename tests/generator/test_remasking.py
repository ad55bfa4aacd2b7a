"""Remasking and guidance schedules: exact counts, untouched given tokens, and what a perfect network gains."""

import pytest
import torch

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.heads import TokenLogits, TokenVocabulary
from prod9.generator.maskgit import GUIDANCE_SCHEDULES, SCHEDULES
from prod9.generator.orders import RevealQueue
from tests.draws import seeded
from tests.generator.oracles import FixedDecoder, MarkovChainOracle
from tests.generator.small import GRID, ORDERS, make_condition, make_generators, make_sampler


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scheduler_type", SCHEDULES)
def test_remasking_keeps_gamma_exact_and_hides_what_was_shown(fixed, order, scheduler_type):
    sampler, states = make_sampler(scheduler_type, steps=9, order=order, remasking=0.5), []
    final = sampler.sample(
        fixed, (2, *GRID), make_condition(2), make_generators(2),
        callback=lambda s: states.append((s.step, s.mask.flatten(1).clone())),
    )  # fmt: skip
    before, hidden_again = torch.ones(2, 48, dtype=torch.bool), 0
    for step, mask in states:
        assert (mask.sum(1) == sampler.scheduler.num_hidden(step / 9, 48)).all()
        again = (mask & ~before).sum(1)
        expected = round(0.5 * min(48 - int(before[0].sum()), int(mask[0].sum())))
        assert again.tolist() == [expected] * 2
        hidden_again += int(again.sum())
        before = mask
    assert hidden_again
    assert not before.any(), "the last step reveals all"
    assert int(final.max()) < 12


@pytest.mark.parametrize("order", ORDERS)
def test_given_tokens_are_never_remasked(decoder, order):
    generator = seeded(0)
    tokens = torch.randint(20, (3, *GRID), generator=generator)
    mask = torch.rand(3, *GRID, generator=generator) < torch.tensor([0.0, 0.3, 0.9]).view(3, 1, 1, 1)
    shown = []
    result = make_sampler(steps=8, order=order, remasking=1.0).sample(
        decoder, (3, *GRID), make_condition(3), make_generators(3), tokens, mask,
        callback=lambda s: shown.append((s.mask.clone(), s.tokens.clone())),
    )  # fmt: skip
    for hidden, now in shown:
        assert not (hidden & ~mask).any()
        assert torch.equal(now[~mask], tokens[~mask])
    assert torch.equal(result[~mask], tokens[~mask])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("remasking", [0.0, 0.4])
def test_sample_k_is_the_same_beside_samples_with_more_to_draw(decoder, order, remasking):
    tokens = torch.randint(20, (4, *GRID), generator=seeded(0))
    mask = torch.zeros(4, 48, dtype=torch.bool)
    for k, count in enumerate((48, 3, 0, 20)):
        mask[k, 5 : 5 + count] = True
    mask[0] = True
    mask = mask.view(4, *GRID)
    sampler = make_sampler(steps=12, order=order, remasking=remasking)

    def draw(samples):
        return sampler.sample(
            decoder, (len(tokens[samples]), *GRID), MaskGiTCondition(label=(torch.arange(4) % 3)[samples]),
            make_generators(4)[samples], tokens[samples], mask[samples],
        )  # fmt: skip

    alone = [draw(slice(k, k + 1)) for k in range(4)]
    assert torch.equal(torch.cat(alone), draw(slice(None)))


def test_remasked_tokens_are_drawn_anew(decoder):
    # Without fresh numbers a token hidden again would come back the same from a network that never changes.
    vocabulary = TokenVocabulary(levels=(7,), groups="dense")
    flat = FixedDecoder(torch.zeros(*GRID, 7), vocabulary)
    for order in ORDERS:
        kwargs = {"order": order, "steps": 20}
        plain, remasked = (
            make_sampler("linear", remasking=eta, **kwargs).sample(
                flat, (1, *GRID), make_condition(1), make_generators(1)
            )
            for eta in (0.0, 1.0)
        )
        assert not torch.equal(plain, remasked)


class BlindAtFirst:
    """An oracle that knows nothing before half of the tokens are shown: what a network is like early on."""

    def __init__(self, oracle):
        self.oracle, self.vocabulary = oracle, oracle.vocabulary
        self.probabilities = oracle.probabilities

    def prepare(self, condition):
        return None

    def __call__(self, tokens, mask, prepared, residuals=None, rows=None):
        logits = self.oracle(tokens, mask, prepared, residuals)
        blind = mask.flatten(1).double().mean(1) > 0.5
        values = logits.values.masked_fill(blind.view(-1, 1, 1, 1, 1), 0.0)
        return TokenLogits(values, self.vocabulary).rows(rows)


def total_variation(*args, **kwargs):
    drawn, expected, _ = drawn_and_true(*args, **kwargs)
    return float((drawn - expected).abs().sum() / 2)


def drawn_and_true(
    remasking, steps, *, scheduler_type="cosine", length=6, stay=0.93, batch=1_500, flawed=False
):
    oracle, calls = MarkovChainOracle(length, stay=stay), []
    if flawed:
        oracle = BlindAtFirst(oracle)
    sampler = make_sampler(scheduler_type, steps=steps, order="random", remasking=remasking)
    condition = MaskGiTCondition(label=torch.zeros(batch, dtype=torch.int64))
    tokens = sampler.sample(
        oracle, (batch, 1, 1, length), condition, seeded(0),
        callback=lambda s: calls.append(int(s.mask[0].sum())),
    )  # fmt: skip
    index = tokens.flatten(1) @ 2 ** torch.arange(length - 1, -1, -1)
    drawn = torch.bincount(index, minlength=2**length).double() / batch
    return drawn, oracle.probabilities(), calls


def test_one_token_a_step_draws_from_the_exact_distribution_though_it_is_remasked():
    # η = 0.4 hides one of two shown tokens while two wait, and none else: never are two drawn together.
    drawn, expected, calls = drawn_and_true(0.4, 40, scheduler_type="linear", length=4, stay=0.8, batch=4_000)
    assert len(calls) > 8, "four tokens alone would take four steps"
    assert set(calls) == {3, 2, 1, 0}
    chi_square = ((drawn - expected) ** 2 / expected).sum() * 4_000
    assert chi_square < 37.7  # 15 degrees, p = 0.001


def test_remasking_leaves_a_perfect_network_its_distribution():
    # As many exact draws are 0.05 away from the truth.
    assert total_variation(0.5, 16) < 0.08


def test_remasking_repairs_what_an_early_network_got_wrong():
    assert total_variation(0.0, 16, flawed=True) > 0.4
    assert total_variation(1.0, 16, flawed=True) < 0.28


def test_a_queue_takes_in_order_and_lets_cells_in_at_their_place():
    orders = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    hidden = torch.tensor([[True, True, False, True], [False, False, False, True]])
    queue = RevealQueue(orders, hidden, [3, 1])
    assert [cells.tolist() for cells in queue.take([1, 0])] == [[3], []]
    queue.insert(0, torch.tensor([3, 2]), torch.tensor([0.99, 0.0]))
    queue.insert(1, torch.tensor([0]), torch.tensor([0.2]))
    assert [cells.tolist() for cells in queue.take([9, 9])] == [[2, 1, 0, 3], [0, 3]]


def test_guidance_grows_over_the_interval():
    def ramp(name):
        kwargs = {"guidance_interval": (0.25, 0.75), "guidance_scale": 1.0}
        return make_sampler(steps=8, guidance_schedule=name, **kwargs).guidance_ramp()

    assert ramp("constant") == [0, 0, 1, 1, 1, 1, 0, 0]
    assert ramp("linear") == [0, 0, 0.25, 0.5, 0.75, 1, 0, 0]
    assert ramp("cosine") == pytest.approx([0, 0, 0.1464, 0.5, 0.8536, 1, 0, 0], abs=1e-4)
    assert set(GUIDANCE_SCHEDULES) == {"constant", "linear", "cosine"}


@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
def test_each_step_is_guided_as_much_as_the_schedule_says(schedule):
    vocabulary = TokenVocabulary(levels=(2,), groups="dense")
    decoder = FixedDecoder(torch.tensor([0.0, 1.0]).expand(16, 16, 16, 2), vocabulary)
    sampler = make_sampler("linear", steps=4, order="random", guidance_scale=2.0, guidance_schedule=schedule)
    masks = [torch.ones(4, 16, 16, 16, dtype=torch.bool)]
    tokens = sampler.sample(
        decoder, (4, 16, 16, 16), make_condition(4), make_generators(4),
        callback=lambda s: masks.append(s.mask.clone()),
    )  # fmt: skip
    for share, before, after in zip(sampler.guidance_ramp(), masks, masks[1:], strict=False):
        drawn = tokens[before & ~after].double().mean()
        assert float(drawn) == pytest.approx(float(torch.sigmoid(torch.tensor(1 + 2 * share))), abs=0.025)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"remasking": -0.1}, "remasking: expected 0 to 1"),
        ({"remasking": 1.5}, "remasking: expected 0 to 1"),
        ({"guidance_schedule": "quadratic"}, "constant or linear or cosine"),
    ],
)
def test_settings_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(**kwargs)
