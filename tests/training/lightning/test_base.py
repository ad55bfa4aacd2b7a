"""What all adapters share: unregistered networks, seeds per step and rank, first weights."""

from copy import deepcopy

import torch

from prod9.training import run
from prod9.training.lightning.continuing import difference
from prod9.training.recipes.base import mix


def test_copies_have_networks_of_their_own_and_share_the_recipe(make_config):
    module = run.build_module(make_config("transformer", "run"))
    copied = deepcopy(module)
    assert copied.recipe is module.recipe
    assert copied.networks()["decoder"] is not module.networks()["decoder"] is module.recipe.decoder


def test_neighbouring_steps_and_ranks_draw_unrelated_numbers():
    seeds = {mix(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 1000
    assert mix(0, 1, 2) == mix(0, 1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_difference_names_the_keys():
    assert difference({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}) == "a.y: 2 there, 3 here"


def test_the_same_seed_gives_the_same_first_weights_and_leaves_the_global_generator_alone(make_config):
    config = make_config("transformer", "run")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = run.build_module(config).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = run.build_module(config).state_dict()
    other = run.build_module(make_config("transformer", "run", seed=1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
