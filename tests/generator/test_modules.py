"""Positions and blocks."""

import pytest
import torch
import torch.nn.functional as F

from prod9.generator.context import LONG, attend
from prod9.generator.modules import AdaLNZeroBlock, Attention, SinCosPosEmbed


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 5, 2), (18, 24, 18)])
def test_positions_are_distinct_for_any_grid(grid):
    table = SinCosPosEmbed(embed_dim=48)(grid)
    assert table.shape == (grid[0] * grid[1] * grid[2], 48)
    assert len(torch.unique(table, dim=0)) == len(table)


def test_positions_are_truly_three_dimensional():
    embed = SinCosPosEmbed(embed_dim=36)
    table = embed((4, 5, 6)).view(4, 5, 6, 36)
    for axis in range(3):
        moved = table.movedim(axis, 0)
        changed = (moved[0] != moved[1]).flatten(0, 1).any(0)
        assert changed.sum() == 12, "a step along one axis changes that axis' sines and cosines alone"
    larger = embed((7, 7, 7)).view(7, 7, 7, 36)
    assert torch.equal(larger[:4, :5, :6], table), "a position does not depend on the size of the grid"


def test_a_table_made_while_generating_does_for_training():
    embed, layer = SinCosPosEmbed(embed_dim=48), torch.nn.Linear(48, 1)
    with torch.inference_mode():
        embed((2, 3, 4))
    layer(embed((2, 3, 4))).sum().backward()
    assert layer.weight.grad is not None


def test_a_stride_puts_each_row_in_the_middle_of_its_neighbours():
    embed = SinCosPosEmbed(embed_dim=36)
    assert torch.equal(embed((2, 2, 2), 3)[0], embed((2, 2, 2))[7]), "the middle of 0, 1, 2 is 1"
    assert torch.equal(embed((3, 3, 3), 3)[13], embed((6, 6, 6)).view(6, 6, 6, 36)[4, 4, 4])


def test_bands_fill_the_first_channels():
    table = SinCosPosEmbed(embed_dim=48, num_bands=3)((4, 4, 4))
    assert not table[:, 18:].any()
    for bands in (0, 9):
        with pytest.raises(ValueError, match="num_bands"):
            SinCosPosEmbed(embed_dim=48, num_bands=bands)


def test_tables_are_cached_but_not_saved():
    embed = SinCosPosEmbed(embed_dim=48)
    assert embed((2, 3, 4)) is embed((2, 3, 4))
    assert set(embed.state_dict()) == {"frequencies"}
    assert embed.double()((2, 3, 4)).dtype == torch.float64


@pytest.mark.parametrize("positions", [1, 6])
def test_block_is_the_identity_at_initialisation(positions):
    block = AdaLNZeroBlock(embed_dim=24, num_heads=3)
    x, condition = torch.randn(2, 6, 24), torch.randn(2, positions, 24)
    assert torch.equal(block(x, block.modulate(condition)), x)


def test_condition_of_a_position_moves_that_position_only_through_the_mlp():
    block = AdaLNZeroBlock(embed_dim=24, num_heads=3)
    torch.nn.init.normal_(block.modulation.weight, std=0.1)
    x, condition = torch.randn(1, 6, 24), torch.zeros(1, 6, 24)
    changed = condition.clone()
    changed[0, 2] = 1.0
    with torch.no_grad():
        block.attention.out.weight.zero_()
        block.attention.out.bias.zero_()
    gap = (block(x, block.modulate(condition)) - block(x, block.modulate(changed))).abs().sum(-1)[0]
    assert gap[2] > 0
    assert gap.sum() == gap[2]


def test_attention_equals_its_definition():
    attention = Attention(embed_dim=8, num_heads=2, dropout=0.0).double()
    torch.nn.init.normal_(attention.query_scale)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    query, key, value = attention.qkv(x)[0].view(5, 3, 2, 4).unbind(1)

    def norm(t):
        return (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    query, key = norm(query) * attention.query_scale.view(2, 4), norm(key)
    weights = (torch.einsum("qhc,khc->hqk", query, key) / 2).softmax(-1)
    mixed = torch.einsum("hqk,khc->qhc", weights, value).reshape(1, 5, 8)
    assert torch.allclose(attention(x), attention.out(mixed))


def test_width_must_divide_into_heads():
    with pytest.raises(ValueError, match="embed_dim: expected a multiple of num_heads"):
        Attention(embed_dim=10, num_heads=3, dropout=0.0)


@pytest.mark.parametrize("positions", [64, LONG + 8])
def test_another_layout_of_long_sequences_changes_no_bit(positions):
    projected = torch.randn(1, positions, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for call in (attend, F.scaled_dot_product_attention):
        x = projected.clone().requires_grad_()
        mixed = call(*(part.transpose(1, 2) for part in x.unbind(2)))
        mixed.square().sum().backward()
        results.append((mixed.detach(), x.grad))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert torch.equal(ours, theirs)
    assert torch.equal(our_gradient, their_gradient)
