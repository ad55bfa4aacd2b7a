"""Tokens to positions and back."""

import pytest
import torch

from prod9.generator.folding import fold, folded_slots, unfold


@pytest.mark.parametrize("p", [1, 2, 3])
def test_unfold_undoes_fold(p):
    x = torch.randn(2, 6, 12, 6, 5)
    folded = fold(x, p)
    assert folded.shape == (2, 432 // p**3, p**3 * 5)
    assert torch.equal(unfold(folded, (6, 12, 6), p), x)


def test_a_position_holds_neighbours():
    cells = torch.arange(64).float().view(1, 4, 4, 4, 1)
    assert fold(cells, 2)[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]


@pytest.mark.parametrize("p", [1, 2])
def test_slots_say_where_each_token_went(p):
    x = torch.randn(3, 2, 4, 6, 1)
    slots = folded_slots(torch.arange(144), (2, 4, 6), p)
    assert torch.equal(fold(x, p).flatten()[slots], x.flatten())


def test_a_grid_that_the_patch_does_not_divide_is_refused_with_one_that_fits():
    with pytest.raises(ValueError, match=r"\(4, 6, 4\)"):
        fold(torch.zeros(1, 3, 6, 4, 2), 2)
