"""Autoguidance of tokens: extrapolation from a weaker decoder, beside guidance by condition and control."""

import pytest
import torch

from prod9.generator.branches import Branches, Control, Weak
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.heads import TokenVocabulary
from tests.draws import seeded
from tests.generator.oracles import FixedDecoder, ToyCode, ToyControlNet
from tests.generator.small import GRID, ORDERS, make_condition, make_generators, make_sampler

VOCABULARY = TokenVocabulary(levels=(4, 3), groups="per_level")


def fixed_decoder(seed):
    return FixedDecoder(torch.randn(*GRID, 7, generator=seeded(seed)), VOCABULARY)


def drawn(sampler, decoder, **kwargs):
    return sampler.sample(decoder, (2, *GRID), make_condition(2), make_generators(2), **kwargs)


@pytest.mark.parametrize("order", ORDERS)
def test_a_weak_model_that_is_the_strong_one_changes_nothing(decoder, order):
    plain = drawn(make_sampler(steps=4, order=order), decoder)
    guided = drawn(make_sampler(steps=4, order=order, autoguidance_scale=2.0), decoder, weak=decoder)
    assert torch.equal(guided, plain)


def test_scale_0_does_not_call_the_weak_model():
    strong, weak = fixed_decoder(0), fixed_decoder(1)
    plain = drawn(make_sampler(steps=4), strong)
    assert torch.equal(drawn(make_sampler(steps=4), strong, weak=weak), plain)
    assert not weak.batches


def test_a_scale_without_a_weak_model_is_refused(fixed):
    with pytest.raises(ValueError, match=r"weak: expected a weaker decoder for autoguidance_scale 1\.5"):
        drawn(make_sampler(steps=4, autoguidance_scale=1.5), fixed)


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_all_differences_are_added_to_the_prediction(ramp):
    """result = c + r·(w·(c − u) + k·(c − p) + s·(p − weak)): p is without control, u without condition too."""
    strong, weak, sampled = fixed_decoder(0), fixed_decoder(1), 3
    controlnet = ToyControlNet(VOCABULARY, 2, 48, 24)
    condition = MaskGiTCondition(label=torch.arange(2))
    control = Control(controlnet, ToyCode(torch.tensor([1.0, 1.0])), guidance_scale=0.7)
    branches = Branches(
        strong, condition, batch=2, ramps=[ramp], scale=0.4, control=control, weak=Weak(weak, 1.3)
    )
    tokens = torch.zeros(2, *GRID, dtype=torch.int64)
    rows = torch.arange(sampled)
    got = branches.predict(0, tokens, tokens == 0, rows).values
    plain, theirs = (one.values.flatten(0, -2)[:sampled] for one in (strong, weak))
    steered = plain + torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    free = torch.zeros_like(plain)
    wanted = steered + ramp * (0.4 * (steered - free) + 0.7 * (steered - plain) + 1.3 * (plain - theirs))
    torch.testing.assert_close(got, wanted)
    assert len(weak.batches) == (ramp > 0)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize(("guidance", "auto"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_evaluations_count_every_branch(interval, guidance, auto):
    strong, weak = fixed_decoder(0), fixed_decoder(1)
    sampler = make_sampler(
        "linear",
        steps=4,
        order="random",
        guidance_scale=guidance,
        autoguidance_scale=auto,
        guidance_interval=interval,
    )
    drawn(sampler, strong, weak=weak)
    assert (sum(strong.batches) + sum(weak.batches)) / 2 == sampler.evaluations
