"""The refiner: nothing changes at the start, nothing outside the head, any sides."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from prod9.generator.refiner import Refiner, RefinerBlock
from tests.draws import seeded, shaken


def build(**changes):
    torch.manual_seed(0)
    options = {"num_classes": 3, "num_channels": (8, 8), "space_to_depth": 2, "detail_channels": 4, **changes}
    return Refiner(**options)


def trained(**changes):
    """A refiner whose residual is no longer zero."""
    return shaken(build(**changes), std=0.1).eval()


def inputs(batch=2, sides=(10, 12, 9)):
    generator = seeded(1)
    decoded = torch.rand(batch, 1, *sides, generator=generator)
    sources = torch.rand(batch, 3, *sides, generator=generator)
    present = torch.tensor([[True, True, False], [False, True, False]])[:batch]
    return decoded, sources, present, torch.tensor([2, 0])[:batch]


def test_untrained_it_returns_the_decoded_target_whatever_the_sides():
    decoded, sources, present, label = inputs()
    refined = build()(decoded, sources, present, label)
    torch.testing.assert_close(refined.volume, decoded, rtol=0, atol=0)
    torch.testing.assert_close(refined.error, torch.full_like(decoded, math.exp(-2.5)))


def test_outside_the_head_nothing_is_made():
    refiner, (decoded, sources, present, label) = trained(), inputs()
    sources[:, :, :4] = 0.0
    refined = refiner(decoded, sources, present, label)
    for made in refined:
        assert not made[:, :, :4].any()
        assert made[:, :, 4:].all()
    nothing = torch.zeros_like(present)
    assert refiner(decoded, sources, nothing, label).volume.all(), "without sources there is no head to see"


@pytest.mark.parametrize(("sides", "factor"), [((3, 4, 2), 4), ((5, 1, 3), 3), ((4, 4, 4), 1)])
def test_guides_are_enlarged_as_torch_enlarges(sides, factor):
    guide = torch.rand(6, *sides)
    wanted = [side * factor - cut for side, cut in zip(sides, (1, 0, 0), strict=True)]
    rows = trained(space_to_depth=factor)._enlarged(guide, wanted)
    expected = torch.nn.functional.interpolate(guide[None], scale_factor=factor, mode="trilinear")
    expected = expected[0, :, : wanted[0], : wanted[1], : wanted[2]]
    torch.testing.assert_close(rows.T.view_as(expected), expected)


def test_the_expected_error_leaves_what_is_refined_alone():
    refiner = trained()
    refiner(*inputs()).error.sum().backward()
    changed = {name for name, p in refiner.named_parameters() if p.grad is not None and p.grad.any()}
    assert changed == {"error_readout.weight", "error_readout.bias"}


def test_the_expected_error_stays_in_its_range():
    refiner = trained()
    for bias, expected in ((-50.0, math.exp(-6.0)), (50.0, 1.0)):
        torch.nn.init.constant_(refiner.error_readout.bias[-1:], bias)
        error = refiner(*inputs()).error
        torch.testing.assert_close(error, torch.full_like(error, expected))


@pytest.mark.parametrize(
    "changes",
    [{"num_channels": (8,)}, {"num_channels": (8, 8, 8)}, {"space_to_depth": 1}, {"space_to_depth": 3}],
)
def test_every_depth_and_folding_takes_any_sides(changes):
    decoded, sources, present, label = inputs()
    assert trained(**changes)(decoded, sources, present, label).volume.shape == decoded.shape


def test_absent_sources_are_not_looked_at():
    refiner, (decoded, sources, present, label) = trained(), inputs()
    other = torch.where(present[:, :, None, None, None], sources, torch.nan)
    torch.testing.assert_close(
        refiner(decoded, sources, present, label), refiner(decoded, other, present, label), rtol=0, atol=0
    )


def test_presence_target_and_every_source_matter():
    refiner, (decoded, sources, present, label) = trained(), inputs()
    base = refiner(decoded, sources, present, label).volume
    assert not torch.allclose(base, refiner(decoded, sources, present, 2 - label).volume)
    assert not torch.allclose(base, refiner(decoded, sources, present.roll(1, dims=1), label).volume)
    assert not torch.allclose(base, refiner(decoded, sources.flip(2), present, label).volume)
    zeroed = refiner(torch.zeros_like(decoded), sources, present, label).volume
    assert not torch.allclose(base - decoded, zeroed)


def test_a_sample_does_not_depend_on_the_batch():
    refiner, given = trained(), inputs()
    both, alone = refiner(*given), refiner(*(x[1:] for x in given))
    for together, one in zip(both, alone, strict=True):
        torch.testing.assert_close(together[1:], one, rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for use_checkpointing in (False, True):
        refiner = trained(use_checkpointing=use_checkpointing)
        refiner.load_state_dict(trained().state_dict())
        refiner(*inputs()).volume.square().mean().backward()
        gradients.append(refiner.stem.weight.grad)
    torch.testing.assert_close(*gradients)


def test_every_parameter_gets_a_gradient():
    refiner = trained(num_res_blocks=2)
    volume, error = refiner(*inputs())
    (volume.square().mean() + error.mean()).backward()
    assert not [name for name, p in refiner.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_fresh_block_ignores_the_facts():
    block = RefinerBlock(in_channels=4, out_channels=8, num_facts=3)
    x = torch.rand(1, 4, 4, 4, 4)
    assert torch.equal(block(x, torch.zeros(1, 3)), block(x, torch.ones(1, 3)))


def test_facts_of_one_target_say_nothing_about_another():
    refiner, (decoded, _, present, label) = build(), inputs()
    facts = refiner._facts(decoded, present, label).view(2, 3, 5)
    assert facts[0, 2].tolist() == [
        1,
        1,
        1,
        1,
        0,
    ]  # it is the target, it was decoded, sources 0 and 1 are there
    assert not facts[0, :2].any()
    assert refiner._facts(torch.zeros_like(decoded), present, label).view(2, 3, 5)[0, 2].tolist() == [
        1,
        0,
        1,
        1,
        0,
    ]


def test_a_wrong_number_of_sources_is_refused():
    decoded, sources, present, label = inputs()
    with pytest.raises(ValueError, match="one channel for each of the 3 classes, got 2"):
        build()(decoded, sources[:, :2], present[:, :2], label)
    with pytest.raises(TypeCheckError):
        build()(decoded[0], sources, present, label)
