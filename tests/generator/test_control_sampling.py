"""sample_with_controlnet: strength 0 is the base, control and its guidance steer, samples stay their own."""

import pytest
import torch

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.heads import TokenVocabulary
from tests.draws import seeded
from tests.generator.oracles import FixedDecoder, ToyCode, ToyControlNet
from tests.generator.small import GRID, ORDERS, make_condition, make_generators
from tests.generator.small import make_sampler as make_any_sampler


def make_sampler(**kwargs):
    return make_any_sampler(steps=5, **kwargs)


@pytest.fixture
def controlnet(decoder):
    return ToyControlNet(decoder.vocabulary, decoder.num_residuals, 1 * 2 * 3, 24)


def controlled(sampler, decoder, controlnet, values, samples=slice(None), **kwargs):
    control = ToyCode(torch.tensor(values))[samples]
    batch = len(values)
    return sampler.sample_with_controlnet(
        decoder,
        (len(control), *GRID),
        MaskGiTCondition(label=(torch.arange(batch) % 3)[samples]),
        make_generators(batch)[samples],
        controlnet=controlnet,
        control=control,
        **kwargs,
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_strength_0_is_the_base_bit_for_bit(decoder, controlnet, order, guidance_scale):
    sampler = make_sampler(order=order, guidance_scale=guidance_scale, guidance_interval=(0.2, 0.9))
    base = sampler.sample(decoder, (3, *GRID), make_condition(3), make_generators(3))
    none = controlled(
        sampler, decoder, controlnet, [3.0, 4.0, 5.0], control_strength=0.0, control_guidance_scale=1.0
    )
    assert torch.equal(none, base)
    assert not controlnet.batches, "and costs nothing"


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_a_control_that_adds_nothing_is_the_base_bit_for_bit(decoder, controlnet, guidance_scale):
    sampler = make_sampler(order="halton", guidance_scale=guidance_scale)
    base = sampler.sample(decoder, (3, *GRID), make_condition(3), make_generators(3))
    assert torch.equal(controlled(sampler, decoder, controlnet, [0.0, 0.0, 0.0]), base)
    assert controlnet.batches


def test_residuals_and_adjustments_reach_the_draws(decoder, controlnet):
    sampler = make_sampler(order="halton")
    base = sampler.sample(decoder, (2, *GRID), make_condition(2), make_generators(2))
    steered = controlled(sampler, decoder, controlnet, [0.0, 50.0])
    assert torch.equal(steered[0], base[0]), "each sample has its own control"
    forced = decoder.vocabulary.join([torch.tensor(0), torch.tensor(0)])
    # The first logit belongs to the first group; the second group is moved by the residuals alone.
    first = decoder.vocabulary.members(steered[1].flatten())[:, 0]
    assert (first == decoder.vocabulary.members(forced)[..., 0]).all()
    assert not torch.equal(steered[1], base[1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("control_guidance_scale", [0.0, 1.5])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_sample_k_is_the_same_whatever_the_batch(
    decoder, controlnet, order, control_guidance_scale, guidance_scale
):
    sampler = make_sampler(order=order, guidance_scale=guidance_scale, guidance_interval=(0.25, 0.75))
    values = [0.3, -0.8, 1.2, 0.0]
    arguments = {"control_strength": 0.7, "control_guidance_scale": control_guidance_scale}
    together = controlled(sampler, decoder, controlnet, values, **arguments)
    alone = [controlled(sampler, decoder, controlnet, values, slice(k, k + 1), **arguments) for k in range(4)]
    assert torch.equal(torch.cat(alone), together)


def test_all_branches_run_in_one_batch_and_only_inside_the_interval(decoder, controlnet):
    sampler = make_sampler(order="halton", guidance_scale=1.0, guidance_interval=(0.4, 0.8))
    controlled(sampler, decoder, controlnet, [1.0, 2.0], control_guidance_scale=1.0)
    assert controlnet.batches == [2, 2, 6, 6, 2]
    controlnet.batches.clear()
    only = make_sampler(order="halton")
    controlled(only, decoder, controlnet, [1.0, 2.0], control_guidance_scale=1.0)
    assert controlnet.batches == [4] * 5


@pytest.mark.parametrize(
    ("guidance_scale", "control_guidance_scale", "expected"),
    # The base is uniform where the condition is dropped and 1 ahead where it is given; the control adds 0.5.
    [
        (0.0, 0.0, 1.5),
        (1.0, 0.0, 1.5 + 1.5),
        (0.0, 2.0, 1.5 + 2 * 0.5),
        (1.0, 2.0, 1.5 + 1.5 + 2 * 0.5),
    ],
)
def test_guidance_goes_beyond_the_condition_and_beyond_the_control(
    guidance_scale, control_guidance_scale, expected
):
    vocabulary = TokenVocabulary(levels=(2,), groups="dense")
    grid = (10, 10, 10)
    base = FixedDecoder(torch.tensor([1.0, 0.0]).expand(*grid, 2), vocabulary)
    tokens = make_sampler(order="random", guidance_scale=guidance_scale).sample_with_controlnet(
        base,
        (4, *grid),
        make_condition(4),
        make_generators(4),
        controlnet=ToyControlNet(vocabulary, 0, 1, 1),
        control=ToyCode(torch.full((4,), 0.5)),
        control_guidance_scale=control_guidance_scale,
    )
    share = 1.0 - float(tokens.double().mean())
    assert share == pytest.approx(float(torch.sigmoid(torch.tensor(expected))), abs=0.02)


def test_strength_scales_what_the_control_adds():
    vocabulary = TokenVocabulary(levels=(2,), groups="dense")
    base = FixedDecoder(torch.zeros(10, 10, 10, 2), vocabulary)
    for strength in (0.5, 1.0, 2.0):
        tokens = make_sampler(order="random").sample_with_controlnet(
            base, (4, 10, 10, 10), make_condition(4), make_generators(4),
            controlnet=ToyControlNet(vocabulary, 0, 1, 1), control=ToyCode(torch.ones(4)),
            control_strength=strength,
        )  # fmt: skip
        share = 1.0 - float(tokens.double().mean())
        assert share == pytest.approx(float(torch.sigmoid(torch.tensor(strength))), abs=0.02)


def test_given_tokens_never_change_under_control(decoder, controlnet):
    tokens = torch.randint(20, (2, *GRID), generator=seeded(0))
    mask = torch.rand(2, *GRID, generator=seeded(1)) < 0.4
    seen = []
    result = controlled(
        make_sampler(order="halton"), decoder, controlnet, [1.0, 2.0],
        initial_tokens=tokens, initial_mask=mask, callback=lambda s: seen.append(s.step),
    )  # fmt: skip
    assert torch.equal(result[~mask], tokens[~mask])
    assert seen == [1, 2, 3, 4, 5]


def test_a_negative_strength_is_refused(decoder, controlnet):
    with pytest.raises(ValueError, match="control_strength"):
        controlled(make_sampler(), decoder, controlnet, [1.0], control_strength=-1.0)
