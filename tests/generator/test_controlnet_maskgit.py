"""ControlNetMaskGiT: the base bit for bit at first, a base that stays as it is, conditions of all types."""

import pytest
import torch

from prod9.controlnet.condition import ControlCondition
from prod9.generator.branches import apply_control
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.controlnet_maskgit import (
    ControlNetMaskGiT,
    one_hot_planes,
)
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.transformer import TransformerDecoder
from tests.draws import seeded, shaken

GRID = (2, 4, 2)
FACTOR = 2


def make_base(**kwargs):
    base = TransformerDecoder(
        **({"levels": (5, 4), "embed_dim": 24, "num_blocks": 5, "num_heads": 2, "num_classes": 3} | kwargs)
    )
    return shaken(base, seed=0).eval().requires_grad_(False)


def make_control(base, **kwargs):
    settings = {"downsampling_factor": FACTOR, "num_labels": 3, "num_mask_classes": 4, "channels": (4, 6)}
    return ControlNetMaskGiT(base=base, **(settings | kwargs)).eval()


def make_batch(batch=2):
    generator = seeded(2)
    tokens = torch.randint(20, (batch, *GRID), generator=generator)
    mask = torch.rand(batch, *GRID, generator=generator) < 0.6
    seg = torch.randint(4, (batch, *(FACTOR * side for side in GRID)), generator=generator).to(torch.uint8)
    label = torch.arange(batch) % 3
    return tokens.masked_fill(mask, 0), mask, MaskGiTCondition(label=label), ControlCondition(seg, label)


def controlled(base, control, batch, rows=None):
    tokens, mask, condition, told = batch
    prepared = base.prepare(condition)
    output = control(tokens, mask, prepared, control.encode(told), rows=rows)
    return apply_control(base, output, tokens, mask, prepared, rows)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("condition_type", ["mask", "label", "both"])
def test_it_starts_as_the_base_bit_for_bit(patch_size, condition_type):
    base = make_base(patch_size=patch_size)
    control = make_control(base, condition_type=condition_type)
    tokens, mask, condition, _ = batch = make_batch()
    prepared = base.prepare(condition)
    rows = mask.flatten().nonzero()[:, 0]
    for wanted in (None, rows):
        plain = base(tokens, mask, prepared, rows=wanted)
        assert torch.equal(controlled(base, control, batch, wanted).values, plain.values)


def test_one_copy_and_one_residual_a_pair_of_blocks():
    base = make_base()
    control = make_control(base)
    assert len(control.blocks) == len(control.residuals) == base.num_residuals == 2
    for i, block in enumerate(control.blocks):
        weight = block.attention.qkv.weight
        assert torch.equal(weight, base.blocks[2 * i].attention.qkv.weight)
        assert weight.data_ptr() != base.blocks[2 * i].attention.qkv.weight.data_ptr()
        assert weight.requires_grad


def test_copies_are_trained_though_the_base_is_frozen():
    control = ControlNetMaskGiT(base=make_base(), downsampling_factor=FACTOR, num_labels=3)
    assert all(module.training for module in control.modules())
    assert all(parameter.requires_grad for parameter in control.parameters())


def test_nothing_of_the_base_is_inside():
    base = make_base()
    names = {name.split(".")[0] for name in make_control(base).state_dict()}
    assert names == {
        "input",
        "positions",
        "encoder",
        "project",
        "absent",
        "blocks",
        "residuals",
        "head",
        "look",
    }
    assert not any("modulation" in name for name in make_control(base).state_dict())


def test_the_dense_adjustment_has_the_shape_of_the_specification():
    base = make_base(patch_size=2)
    tokens, mask, condition, told = make_batch()
    control = shaken(make_control(base))
    output = control(tokens, mask, base.prepare(condition), control.encode(told))
    assert output.logits.dense().shape == (2, 20, *GRID)
    assert all(residual.shape == (2, 2, 24) for residual in output.residuals)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_rows_are_rows_of_the_whole(patch_size):
    base = make_base(patch_size=patch_size)
    control = shaken(make_control(base))
    batch = make_batch()
    rows = batch[1].flatten().nonzero()[:, 0]
    torch.testing.assert_close(
        controlled(base, control, batch, rows).values, controlled(base, control, batch).rows(rows).values
    )


def test_all_parameters_learn_and_none_of_the_base():
    base = make_base(patch_size=2)
    control = shaken(make_control(base))
    tokens, mask, condition, told = make_batch()
    told = told.drop(torch.tensor([True, False]))
    controlled(base, control, (tokens, mask, condition, told)).values.square().sum().backward()
    assert all(parameter.grad is not None for parameter in control.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_what_the_condition_says_of_a_token_does_not_depend_on_its_place_in_a_position():
    base = make_base(patch_size=2)
    control = make_control(base)
    torch.nn.init.normal_(control.look.weight, generator=seeded(3))
    grid = (8, 8, 8)
    tokens = torch.zeros(1, *grid, dtype=torch.int64)
    told = ControlCondition(torch.full((1, *(FACTOR * n for n in grid)), 2), torch.tensor([1]))
    prepared = base.prepare(MaskGiTCondition(label=torch.tensor([1])))
    values = control(tokens, tokens == 0, prepared, control.encode(told)).logits.values[0]
    inner = values[3:5, 3:5, 3:5].flatten(
        0, 2
    )  # all eight places, and no border within reach of the convolutions
    assert inner[0].abs().max() > 0
    torch.testing.assert_close(inner, inner[:1].expand_as(inner))
    nothing = control.encode(told).unconditional()
    assert not control(tokens, tokens == 0, prepared, nothing).logits.values.any()


def test_the_first_gradient_already_knows_the_condition():
    base = make_base()
    tokens, mask, condition, told = make_batch()
    gradients = []
    for seg in (told.seg, told.seg.flip(2)):
        torch.manual_seed(0)
        control = make_control(base)
        other = ControlCondition(seg=seg, label=told.label)
        controlled(base, control, (tokens, mask, condition, other)).values.square().sum().backward()
        gradients.append(control.residuals[0].weight.grad)
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_segmentation_and_label_reach_the_prediction_unless_dropped():
    base = make_base()
    control = shaken(make_control(base))
    tokens, mask, condition, told = make_batch()

    def values(seg, label, dropped=None):
        return controlled(
            base, control, (tokens, mask, condition, ControlCondition(seg, label, dropped=dropped))
        )

    plain = values(told.seg, told.label).values
    assert not torch.equal(values(told.seg.flip(1), told.label).values, plain)
    assert not torch.equal(values(told.seg, told.label.flip(0)).values, plain)
    every = torch.tensor([True, True])
    gone = values(told.seg, told.label, every).values
    assert torch.equal(values(3 - told.seg, told.label.flip(0), every).values, gone)


def test_an_encoded_control_is_a_batch():
    base = make_base()
    control = shaken(make_control(base))
    *_, told = make_batch()
    encoded = control.encode(told)
    assert len(encoded) == 2
    both = encoded.cat(encoded.unconditional())
    assert len(both) == 4
    torch.testing.assert_close(both[:2].features, encoded.features)
    gone = control.encode(told.drop(torch.tensor([True, True])))
    torch.testing.assert_close(both[2:].features, gone.features)


def test_nothing_known_is_not_background():
    base = make_base()
    control = shaken(make_control(base))
    background = ControlCondition(
        torch.zeros(1, 4, 8, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    )
    encoded = control.encode(background)
    assert not torch.allclose(encoded.features, encoded.unconditional().features)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_the_sampler_takes_it(guidance):
    base = make_base(patch_size=2)
    sampler = MaskGiTSampler(
        scheduler=MaskGiTScheduler(scheduler_type="arccos"), steps=4, order="halton", guidance_scale=guidance
    )
    *_, condition, told = make_batch()
    generators = [[seeded(k) for k in range(2)] for _ in range(3)]
    plain = sampler.sample(base, (2, *GRID), condition, generators[0])
    for control, pair, equal in (
        (make_control(base), generators[1], True),
        (shaken(make_control(base)), generators[2], False),
    ):
        drawn = sampler.sample_with_controlnet(
            base,
            (2, *GRID),
            condition,
            pair,
            controlnet=control,
            control=control.encode(told),
            control_guidance_scale=guidance,
        )
        assert torch.equal(drawn, plain) == equal


def test_classes_become_planes_and_strange_ones_are_refused():
    seg = torch.tensor([0, 3, 1]).view(1, 3, 1, 1).to(torch.uint8)
    planes = one_hot_planes(seg, 4)
    assert planes[0, :, :, 0, 0].T.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match="classes: expected numbers from 0 to 2"):
        one_hot_planes(seg, 3)


@pytest.mark.parametrize(
    ("condition_type", "told", "text"),
    [
        ("mask", ControlCondition(label=torch.tensor([0])), "seg: expected for condition_type 'mask'"),
        (
            "both",
            ControlCondition(seg=torch.zeros(1, 4, 8, 4, dtype=torch.uint8)),
            "label: expected for condition_type",
        ),
        ("label", ControlCondition(label=torch.tensor([3])), "labels: expected numbers from 0 to 2"),
        ("mask", ControlCondition(seg=torch.zeros(1, 5, 8, 4, dtype=torch.uint8)), "multiples of 2"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(condition_type, told, text):
    control = make_control(make_base(), condition_type=condition_type)
    with pytest.raises(ValueError, match=text):
        control.encode(told)


def test_a_base_of_one_block_and_an_empty_condition_are_refused():
    with pytest.raises(ValueError, match="two blocks"):
        make_control(make_base(num_blocks=1))
    with pytest.raises(ValueError, match="got none of them"):
        ControlCondition()


# -- over the in-context decoder ------------------------------------------------------------------------


def make_stream(attention):
    base = TransformerDecoderSingleStream(
        levels=(5, 4), embed_dim=24, num_blocks=4, num_heads=2, num_classes=3, attention=attention
    )
    return shaken(base, seed=0).eval().requires_grad_(False)


def make_sources():
    """One sample with two sources, one with a single one."""
    latents = torch.randn(2, 2, 2, *GRID, generator=seeded(4))
    return InContextCondition(torch.tensor([0, 1]), torch.tensor([[1, 2], [0, -1]]), latents)


@pytest.mark.parametrize("attention", ["prefix", "full"])
def test_over_the_in_context_decoder_it_starts_as_the_base_and_steers(attention):
    base = make_stream(attention)
    tokens, mask, _, told = make_batch()
    prepared = base.prepare(make_sources())
    plain = base(tokens, mask, prepared).values
    control = make_control(base)
    assert torch.equal(controlled(base, control, (tokens, mask, make_sources(), told)).values, plain)
    steered = controlled(base, shaken(control), (tokens, mask, make_sources(), told))
    assert not torch.allclose(steered.values, plain)
    steered.values.square().sum().backward()
    assert all(parameter.grad is not None for parameter in control.parameters())


def test_its_copies_see_the_sources():
    base = make_stream("prefix")
    tokens, mask, _, told = make_batch()
    control = shaken(make_control(base))
    encoded, outputs = control.encode(told), []
    for sources in (make_sources(), make_sources().unconditional()):
        outputs.append(control(tokens, mask, base.prepare(sources), encoded).residuals[1])
    assert not torch.allclose(*outputs)
    alone = control(tokens[1:], mask[1:], base.prepare(make_sources())[1:], encoded[1:]).residuals[1]
    torch.testing.assert_close(alone, outputs[0][1:], atol=1e-5, rtol=1e-5)
