"""TransformerDecoderSingleStream: order and padding of sources, the cache of the context, guidance."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.token_decoder import finish
from prod9.generator.transformer import TransformerDecoder
from tests.draws import seeded, shaken

GRID = (2, 4, 6)
LEVELS = (5, 4, 3)


def make_decoder(**kwargs) -> TransformerDecoderSingleStream:
    settings = {"levels": LEVELS, "embed_dim": 24, "num_blocks": 4, "num_heads": 2, "num_classes": 4}
    return shaken(TransformerDecoderSingleStream(**(settings | kwargs))).eval()


def make_inputs(batch=3):
    generator = seeded(0)
    tokens = torch.randint(60, (batch, *GRID), generator=generator)
    return tokens, torch.rand(batch, *GRID, generator=generator) < 0.5


def make_condition(labels, targets=None, **kwargs) -> InContextCondition:
    """Sources by label, -1 for none; targets 3 by default."""
    labels = torch.tensor(labels)
    latents = torch.randn(*labels.shape, 3, *GRID, generator=seeded(2))
    targets = torch.full((len(labels),), 3) if targets is None else torch.tensor(targets)
    return InContextCondition(targets, labels, latents, **kwargs)


def predict(decoder, condition):
    tokens, mask = make_inputs(len(condition))
    return decoder(tokens, mask, decoder.prepare(condition)).values


def reordered(condition, order):
    return replace(
        condition,
        source_labels=condition.source_labels[:, order],
        source_latents=condition.source_latents[:, order],
        co_registered=condition.is_co_registered[:, order],
    )


MIXED = [[0, 1, 2], [1, -1, -1], [2, 0, -1]]
KINDS = [{}, {"attention": "full"}, {"aligned": False}, {"patch_size": 2}, {"context_stride": 3}]


@pytest.mark.parametrize("kwargs", KINDS)
def test_the_order_of_the_sources_does_not_matter(kwargs):
    decoder, condition = make_decoder(**kwargs), make_condition(MIXED)
    expected = predict(decoder, condition)
    for order in ([2, 0, 1], [1, 2, 0]):
        torch.testing.assert_close(
            predict(decoder, reordered(condition, order)), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kwargs", KINDS)
def test_which_latent_bears_which_label_does_matter(kwargs):
    decoder, condition = make_decoder(**kwargs), make_condition([[0, 1]])
    swapped = replace(condition, source_labels=condition.source_labels.flip(1))
    assert not torch.allclose(predict(decoder, condition), predict(decoder, swapped), atol=1e-2)


@pytest.mark.parametrize("kwargs", KINDS)
def test_padding_never_changes_a_prediction(kwargs):
    decoder = make_decoder(**kwargs)
    condition = make_condition(MIXED)
    together = predict(decoder, condition)
    poisoned = replace(condition, source_latents=condition.source_latents.clone())
    poisoned.source_latents[condition.source_labels < 0] = float("nan")
    assert torch.equal(predict(decoder, poisoned), together)
    assert torch.equal(predict(decoder, condition.padded(6)), together)
    tokens, mask = make_inputs()
    for k, count in enumerate((3, 1, 2)):
        alone = InContextCondition(
            condition.target_label[k : k + 1],
            condition.source_labels[k : k + 1, :count],
            condition.source_latents[k : k + 1, :count],
        )
        one = decoder(tokens[k : k + 1], mask[k : k + 1], decoder.prepare(alone)).values
        torch.testing.assert_close(one, together[k : k + 1], rtol=1e-4, atol=1e-5)


def test_rows_under_padding_get_no_gradient():
    decoder, condition = make_decoder(), make_condition(MIXED)
    latents = condition.source_latents.requires_grad_()
    predict(decoder, condition).square().sum().backward()
    reached = latents.grad.flatten(2).abs().sum(-1) > 0
    assert torch.equal(reached, condition.source_labels >= 0)


def uncached(decoder, tokens, mask, condition):
    """The same network without a cache: the whole sequence through every block, one masked attention."""
    context, padding = decoder.condition(condition)
    x = decoder.embed(tokens, mask) + decoder.condition.aligned(condition)
    modulator = F.silu(decoder.condition.modulator(condition))
    length, count = context.shape[1], context.shape[1] + x.shape[1]
    seen = torch.ones(count, count, dtype=torch.bool)
    seen[:length, length:] = False
    seen = seen & ~F.pad(padding, (0, x.shape[1]))[:, None, None]
    joint = torch.cat([context, x], 1)
    for block in decoder.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulate(modulator).chunk(6, -1)
        h = F.layer_norm(joint, joint.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        mixed = F.scaled_dot_product_attention(*block.attention.project(h), attn_mask=seen)
        joint = joint + gate1 * block.attention.merge(mixed)
        h = F.layer_norm(joint, joint.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        joint = joint + gate2 * block.mlp(h)
    features = finish(joint[:, length:], decoder.modulation(modulator))
    return decoder.predict(features, tuple(tokens.shape[1:])).values


@pytest.mark.parametrize("labels", [[[0], [1], [2]], [[0, 1, 2]] * 3, MIXED])
def test_the_cache_equals_one_masked_pass_over_everything(labels):
    decoder, condition = make_decoder(), make_condition(labels)
    condition = condition.drop(torch.tensor([False, False, True]))
    tokens, mask = make_inputs()
    expected = uncached(decoder, tokens, mask, condition)
    cached = decoder(tokens, mask, decoder.prepare(condition)).values
    assert (cached - expected).abs().max() < 1e-5 * expected.abs().max()


def test_full_attention_lets_the_context_see_the_target():
    condition = make_condition(MIXED)
    prefix, full = make_decoder(), make_decoder(attention="full")
    assert not torch.allclose(predict(prefix, condition), predict(full, condition), atol=1e-3)


@pytest.mark.parametrize("kwargs", KINDS)
def test_a_dropped_sample_knows_nothing_of_its_condition(kwargs):
    decoder = make_decoder(**kwargs)
    one = make_condition(MIXED).unconditional()
    other = make_condition([[1, 2, 0]] * 3, targets=[0, 1, 2]).unconditional()
    assert torch.equal(predict(decoder, one), predict(decoder, other))
    some = make_condition(MIXED).drop(torch.tensor([False, True, False]))
    torch.testing.assert_close(predict(decoder, some)[1], predict(decoder, one)[1], rtol=1e-4, atol=1e-5)
    assert decoder.condition(one)[1].sum(1).tolist() == [decoder.condition(one)[1].shape[1] - 1] * 3


@pytest.mark.parametrize("kwargs", KINDS)
def test_both_branches_of_guidance_are_prepared_once_and_sliced(kwargs):
    decoder, condition = make_decoder(**kwargs), make_condition(MIXED)
    tokens, mask = make_inputs()
    both = decoder.prepare(condition.cat(condition.unconditional()))
    joint = decoder(tokens.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1, 1), both).values
    torch.testing.assert_close(joint[:3], predict(decoder, condition), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joint[3:], predict(decoder, condition.unconditional()), rtol=1e-4, atol=1e-5)
    for part in (slice(0, 3), slice(1, 5)):
        sliced = decoder(tokens.repeat(2, 1, 1, 1)[part], mask.repeat(2, 1, 1, 1)[part], both[part]).values
        torch.testing.assert_close(sliced, joint[part], rtol=1e-4, atol=1e-5)


def test_examples_have_positions_of_their_own():
    decoder = make_decoder()
    near = make_condition([[0, 1]])
    far = replace(near, co_registered=torch.tensor([[True, False]]))
    assert not torch.allclose(predict(decoder, near), predict(decoder, far), atol=1e-3)
    held = decoder.condition.aligned(far)
    alone = InContextCondition(far.target_label, far.source_labels[:, :1], far.source_latents[:, :1])
    torch.testing.assert_close(held, decoder.condition.aligned(alone))


@pytest.mark.parametrize("kwargs", KINDS)
def test_gradients_reach_everything(kwargs):
    decoder = make_decoder(**kwargs).train()
    condition = make_condition(MIXED).drop(torch.tensor([False, True, False]))
    condition = replace(condition, co_registered=torch.tensor([[True, False, True]] * 3))
    tokens, mask = make_inputs()
    logits = decoder(tokens, mask, decoder.prepare(condition))
    logits.cross_entropy(tokens).sum().backward()
    unused = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


def test_every_weight_has_a_gradient_even_without_examples_or_dropped_samples():
    decoder = make_decoder()
    predict(decoder, make_condition(MIXED)).sum().backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None], "these would hang DDP"


@pytest.mark.parametrize("kwargs", KINDS)
def test_residuals_reach_the_target_alone(kwargs):
    decoder, condition = make_decoder(**kwargs), make_condition(MIXED)
    tokens, mask = make_inputs()
    prepared = decoder.prepare(condition)
    base = decoder(tokens, mask, prepared)
    shape = (3, 48 // decoder.patch_size**3, 24)
    zeros = [torch.zeros(shape) for _ in range(decoder.num_residuals)]
    assert torch.equal(decoder(tokens, mask, prepared, zeros).values, base.values)
    for i in range(decoder.num_residuals):
        residuals = list(zeros)
        residuals[i] = torch.randn(shape)
        assert not torch.allclose(decoder(tokens, mask, prepared, residuals).values, base.values, atol=1e-3)


@pytest.mark.parametrize("attention", ["prefix", "full"])
def test_checkpointing_recomputes_the_same_gradients(attention):
    gradients = []
    for use_checkpointing in (False, True):
        decoder = make_decoder(use_checkpointing=use_checkpointing, attention=attention)
        predict(decoder, make_condition(MIXED)).square().sum().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_target_from_no_source_at_all():
    decoder = make_decoder()
    none = InContextCondition(
        torch.tensor([1]), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, 3, *GRID)
    )
    torch.testing.assert_close(predict(decoder, none), predict(decoder, none.padded(2)))


@pytest.mark.parametrize(("targets", "labels"), [([4], [[0]]), ([-1], [[0]]), ([0], [[4]]), ([0], [[-2]])])
def test_labels_outside_the_classes_are_refused(targets, labels):
    with pytest.raises(ValueError, match=r"labels of (targets|sources): expected numbers from (-1|0) to 3"):
        make_decoder().prepare(make_condition(labels, targets))


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention: expected prefix or full"):
        make_decoder(attention="causal")


def test_sample_hands_on_to_the_sampler():
    decoder, condition = make_decoder(), make_condition(MIXED)
    sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=3, guidance_scale=1.0)
    drawn = [
        draw(seeded(5))
        for draw in (
            lambda g: decoder.sample(sampler, (3, *GRID), condition, generator=g),
            lambda g: sampler.sample(decoder, (3, *GRID), condition, g),
        )
    ]
    assert torch.equal(*drawn)
    assert drawn[0].shape == (3, *GRID)


def test_bfloat16_autocast_stays_close():
    decoder, condition = make_decoder(), make_condition(MIXED)
    exact = predict(decoder, condition)
    with torch.autocast("cpu", torch.bfloat16):
        rough = predict(decoder, condition)
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_it_starts_from_a_label_conditional_decoder_of_its_size():
    label = TransformerDecoder(levels=LEVELS, embed_dim=24, num_blocks=4, num_heads=2, num_classes=4)
    shaken(label, seed=3)
    decoder = make_decoder()
    fresh = decoder.start_from(label)

    kept = dict(label.named_parameters())
    for name, value in decoder.named_parameters():
        other = "condition.label.weight" if name == "condition.target.weight" else name
        assert (name in fresh) != (other in kept and not name.startswith("condition.label")), name
        if name not in fresh:
            torch.testing.assert_close(value, kept[other], rtol=0, atol=0)
    condition = make_condition(MIXED)
    assert decoder.condition.aligned(condition).abs().max() == 0
    # What modulates the blocks is the label's, and nobody's where it is dropped.
    dropped = condition.drop(torch.tensor([False, True, False]))
    expected = label.condition.label(torch.tensor([3, 4, 3]))[:, None]
    assert torch.equal(decoder.condition.modulator(dropped), expected)


def test_it_does_not_start_from_a_decoder_of_another_size():
    label = TransformerDecoder(levels=LEVELS, embed_dim=24, num_blocks=2, num_heads=2, num_classes=4)
    decoder = make_decoder()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"same size.*blocks\.2\."):
        decoder.start_from(label)
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
