"""TransformerDecoder and its condition."""

import pytest
import torch
from jaxtyping import TypeCheckError

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.factory import build_decoder
from prod9.generator.transformer import TransformerDecoder
from tests.draws import seeded, shaken

GRID = (2, 4, 6)


def make_decoder(*, shake=True, **kwargs):
    settings = {"levels": (5, 4, 3), "embed_dim": 24, "num_blocks": 3, "num_heads": 2, "num_classes": 3}
    decoder = TransformerDecoder(**(settings | kwargs))
    return (shaken(decoder) if shake else decoder).eval()


def make_inputs(batch=2):
    generator = seeded(0)
    tokens = torch.randint(60, (batch, *GRID), generator=generator)
    mask = torch.rand(batch, *GRID, generator=generator) < 0.5
    return tokens, mask, MaskGiTCondition(label=torch.arange(batch) % 3)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_shapes_and_the_dense_view(patch_size):
    decoder = make_decoder(patch_size=patch_size)
    tokens, mask, condition = make_inputs()
    logits = decoder(tokens, mask, decoder.prepare(condition))
    assert logits.dense().shape == (2, 60, *GRID)
    assert decoder.head.out_features == patch_size**3 * decoder.vocabulary.num_logits


def test_a_4d_latent_instead_of_tokens_is_caught_by_the_shape_check():
    decoder = make_decoder()
    tokens, mask, condition = make_inputs()
    with pytest.raises(TypeCheckError):
        decoder(tokens[0], mask[0], decoder.prepare(condition))


def test_a_new_decoder_predicts_the_uniform_distribution():
    decoder = make_decoder(shake=False)
    tokens, mask, condition = make_inputs()
    dense = decoder(tokens, mask, decoder.prepare(condition)).dense()
    assert torch.allclose(dense.exp(), torch.tensor(1 / 60))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_rows_are_those_of_the_whole(patch_size):
    decoder = make_decoder(patch_size=patch_size)
    tokens, mask, condition = make_inputs()
    prepared, rows = decoder.prepare(condition), torch.tensor([95, 0, 50, 7])
    some = decoder(tokens, mask, prepared, rows=rows).values
    assert torch.allclose(some, decoder(tokens, mask, prepared).rows(rows).values, atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_hidden_tokens_are_not_looked_at(patch_size):
    decoder = make_decoder(patch_size=patch_size)
    tokens, mask, condition = make_inputs()
    prepared = decoder.prepare(condition)
    other = torch.where(mask, (tokens + 7) % 60, tokens)
    assert torch.equal(decoder(tokens, mask, prepared).values, decoder(other, mask, prepared).values)


def test_each_token_of_a_patch_is_hidden_by_itself():
    decoder = make_decoder(patch_size=2)
    tokens = torch.zeros(3, *GRID, dtype=torch.int64)
    mask = torch.zeros(3, *GRID, dtype=torch.bool)
    mask[1, 0, 0, 0] = mask[2, 0, 0, 1] = True
    embedded = decoder.embed(tokens, mask)
    assert len(torch.unique(embedded[:, 0], dim=0)) == 3
    assert torch.equal(embedded[0, 1:], embedded[1, 1:])


def test_zero_residuals_change_nothing_and_others_do():
    decoder = make_decoder(num_blocks=5)
    tokens, mask, condition = make_inputs()
    prepared = decoder.prepare(condition)
    base = decoder(tokens, mask, prepared).values
    zeros = [torch.zeros(2, 48, 24) for _ in range(decoder.num_residuals)]
    assert torch.equal(decoder(tokens, mask, prepared, zeros).values, base)
    for i in range(decoder.num_residuals):
        residuals = list(zeros)
        residuals[i] = torch.randn(2, 48, 24, requires_grad=True)
        changed = decoder(tokens, mask, decoder.prepare(condition), residuals).values
        assert not torch.allclose(changed, base, atol=1e-3)
        changed.sum().backward()
        assert residuals[i].grad is not None
        assert residuals[i].grad.abs().sum() > 0, "control learns through the base"


def test_a_wrong_number_of_residuals_is_refused():
    decoder = make_decoder(num_blocks=4)
    tokens, mask, condition = make_inputs()
    with pytest.raises(ValueError, match="residuals: expected 2"):
        decoder(tokens, mask, decoder.prepare(condition), [torch.zeros(2, 48, 24)])


def test_dropping_the_condition_gives_the_unconditional_prediction():
    decoder = make_decoder()
    tokens, mask, condition = make_inputs()
    dropped = condition.drop(torch.tensor([True, False]))
    some = decoder(tokens, mask, decoder.prepare(dropped)).values
    none = decoder(tokens, mask, decoder.prepare(condition.unconditional())).values
    every = decoder(tokens, mask, decoder.prepare(condition)).values
    assert torch.equal(some[0], none[0])
    assert torch.equal(some[1], every[1])
    assert not torch.allclose(none, every, atol=1e-3)
    labels = MaskGiTCondition(label=torch.tensor([2, 2])).unconditional()
    assert torch.equal(decoder(tokens, mask, decoder.prepare(labels)).values, none)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_source_latent_conditions_position_by_position(patch_size):
    decoder = make_decoder(source_latent=True, patch_size=patch_size)
    latent = torch.randn(2, 3, *GRID)
    labels = torch.tensor([0, 1])
    condition = MaskGiTCondition(label=labels, source_latent=latent, source_label=torch.tensor([1, 2]))
    prepared = decoder.prepare(condition)
    positions = 48 // patch_size**3
    assert prepared.final.shape == (2, positions, 48)
    moved = latent.clone()
    moved[0, :, 0, 0, 0] += 1
    other = decoder.prepare(MaskGiTCondition(labels, moved, torch.tensor([1, 2]))).final
    changed = (other != prepared.final).any(-1)
    assert changed.nonzero().tolist() == [[0, 0]]
    unknown = decoder.prepare(MaskGiTCondition(label=labels, source_latent=latent))
    assert torch.equal(
        unknown.final, decoder.prepare(MaskGiTCondition(labels, latent, torch.tensor([-1, -1]))).final
    )
    assert not torch.equal(unknown.final, prepared.final)
    nothing = decoder.prepare(condition.unconditional()).final
    assert torch.equal(nothing, nothing[:1, :1].expand_as(nothing)), "nothing of the source is left"


def test_source_latent_and_decoder_must_agree():
    latent = torch.zeros(1, 3, *GRID)
    with pytest.raises(ValueError, match="kind 'decoder'"):
        make_decoder().prepare(MaskGiTCondition(label=torch.tensor([0]), source_latent=latent))
    with pytest.raises(ValueError, match="source_latent: expected"):
        make_decoder(source_latent=True).prepare(MaskGiTCondition(label=torch.tensor([0])))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises(ValueError, match="labels: expected numbers from 0 to 2"):
        make_decoder().prepare(MaskGiTCondition(label=torch.tensor([0, label])))


def test_conditions_join_slice_and_move():
    one = MaskGiTCondition(label=torch.tensor([0, 1]), source_latent=torch.ones(2, 3, 1, 1, 1))
    both = one.cat(one.unconditional()).to("cpu")
    assert len(both) == 4
    assert both.is_dropped.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="source_latent: expected in both"):
        one.cat(MaskGiTCondition(label=torch.tensor([0])))
    decoder = make_decoder()
    labels = MaskGiTCondition(label=torch.tensor([0, 1]))
    prepared, half = decoder.prepare(labels), decoder.prepare(labels.cat(labels.unconditional()))[:2]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(prepared.blocks, half.blocks, strict=True))


def test_checkpointing_recomputes_the_same_gradients():
    tokens, mask, condition = make_inputs()
    gradients = []
    for use_checkpointing in (False, True):
        decoder = make_decoder(use_checkpointing=use_checkpointing)
        decoder(tokens, mask, decoder.prepare(condition)).cross_entropy(tokens).mean().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_every_parameter_is_used():
    for kind in ("label_conditional", "decoder"):
        settings = {"levels": (5, 4), "embed_dim": 24, "num_blocks": 2, "num_heads": 2, "patch_size": 2}
        decoder = shaken(build_decoder(kind, **settings))
        latent = torch.randn(2, 2, *GRID) if kind == "decoder" else None
        condition = MaskGiTCondition(label=torch.tensor([0, 1]), source_latent=latent)
        condition = condition.drop(torch.tensor([True, False]))
        tokens, mask, _ = make_inputs()
        logits = decoder(tokens % 20, mask, decoder.prepare(condition))
        logits.cross_entropy(tokens % 20).sum().backward()
        unused = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
        assert not unused, "unused parameters hang DDP"


def test_dropout_acts_in_training_only():
    decoder = make_decoder(dropout=0.5)
    tokens, mask, condition = make_inputs()
    prepared = decoder.prepare(condition)
    assert torch.equal(decoder(tokens, mask, prepared).values, decoder(tokens, mask, prepared).values)
    decoder.train()
    assert not torch.equal(decoder(tokens, mask, prepared).values, decoder(tokens, mask, prepared).values)


def test_bfloat16_autocast_stays_close():
    decoder = make_decoder(patch_size=2)
    tokens, mask, condition = make_inputs()
    exact = decoder(tokens, mask, decoder.prepare(condition)).dense()
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder(tokens, mask, decoder.prepare(condition))
    assert logits.dense().dtype == torch.float32
    assert (logits.dense() - exact).abs().max() < 0.2


def test_unknown_kind_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="kind: expected label_conditional or decoder"):
        build_decoder("unet", levels=(5, 4))
