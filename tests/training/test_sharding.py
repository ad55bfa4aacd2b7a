"""Slices and whole tensors, in one process; ``test_two_ranks_sharded`` trains with two."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.factory import build_decoder
from prod9.training.sharding import gather, own_part, reshard, shard, slice_optimizer_state, whole


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def small_decoder():
    torch.manual_seed(0)
    return build_decoder(
        "label_conditional", levels=(3, 3), num_classes=2, embed_dim=12, num_blocks=2, num_heads=2
    )


def test_a_sharded_network_predicts_the_same_and_comes_back_whole(mesh):
    reference, network = small_decoder(), small_decoder()
    shard(network, mesh)
    assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
    tokens, condition = torch.zeros(1, 2, 2, 2, dtype=torch.int64), MaskGiTCondition(torch.tensor([1]))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        found, wanted = (net.eval()(tokens, mask, net.prepare(condition)) for net in (network, reference))
    assert torch.equal(found.values, wanted.values)
    assert not all(isinstance(parameter, DTensor) for parameter in network.parameters())
    reshard(network)
    assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
    state = gather({"weights": network.state_dict(), "steps": [1, "two"]}, keep=True)
    assert state["steps"] == [1, "two"]
    for name, value in reference.state_dict().items():
        assert torch.equal(state["weights"][name], value)
    assert gather(list(network.parameters()), keep=False) == [None] * len(list(network.parameters()))


def test_a_network_whose_parts_are_not_known_is_refused(mesh):
    with pytest.raises(TypeError, match="decoder of tokens or a DiffusionModelRF to shard, got Linear"):
        shard(nn.Linear(2, 2), mesh)


def test_optimizer_state_is_sliced_like_the_weights(mesh):
    reference, network = small_decoder(), small_decoder()
    shard(network, mesh)
    before, after = (torch.optim.AdamW(net.parameters(), lr=0.1) for net in (reference, network))
    for parameter in reference.parameters():
        parameter.grad = torch.ones_like(parameter)
    before.step()
    after.load_state_dict(slice_optimizer_state(before.state_dict(), after))
    for one, other in zip(reference.parameters(), network.parameters(), strict=True):
        assert isinstance(after.state[other]["exp_avg"], DTensor)
        assert torch.equal(whole(after.state[other]["exp_avg"]), before.state[one]["exp_avg"])
        assert after.state[other]["step"] == 1


def test_what_is_not_sharded_is_left_alone():
    tensor = torch.ones(3)
    assert whole(tensor) is tensor
    assert own_part(tensor) is tensor
    assert gather({"a": tensor}, keep=False)["a"] is tensor
    reshard(nn.Linear(2, 2))
