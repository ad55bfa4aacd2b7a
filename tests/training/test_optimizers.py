"""Muon beside AdamW: orthogonalised steps, and which parameters take which."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.schema import MuonConfig, TrainingConfig
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.generator.factory import build_decoder
from prod9.training import optimizers
from prod9.training.optimizers import (
    Muon,
    build_optimizer,
    hidden_matrices,
    iterate,
    iterate_gram,
    orthogonalise,
)
from prod9.training.sharding import shard, whole


def decoder(width=32):
    torch.manual_seed(0)
    return build_decoder(
        "label_conditional", levels=(5, 5), num_classes=2, embed_dim=width, num_blocks=2, num_heads=2
    )


def give_gradients(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def settings(**muon):
    return TrainingConfig(weight_decay=0.1, muon=MuonConfig(**muon))


def optimizer_of(network, training, **options):
    return build_optimizer(network, training, rate=1e-2, main=True, **options)


@given(
    count=st.integers(1, 3),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    scale=st.sampled_from([1e-4, 1, 1e4]),
)
def test_singular_vectors_stay_and_singular_values_become_one(count, rows, columns, scale):
    generator = torch.Generator().manual_seed(rows * 13 + columns)
    u, s, v = torch.linalg.svd(torch.randn(count, rows, columns, generator=generator), full_matrices=False)
    s = s.clamp_min(0.02 * s.amax(1, keepdim=True))  # below a thousandth, five iterations are not enough
    steps = orthogonalise(scale * u @ torch.diag_embed(s) @ v)
    values = u.mT @ steps @ v.mT
    diagonal = torch.diagonal(values, dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 40)])
def test_both_ways_to_iterate_agree(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x / x.flatten(1).norm(dim=1)[:, None, None]
    for iterations in (1, 2, 5):
        torch.testing.assert_close(iterate_gram(x, iterations), iterate(x, iterations), rtol=1e-3, atol=1e-4)
    # What a GPU does.
    assert (iterate(x.bfloat16(), 5).float() - iterate(x, 5)).abs().max() < 0.1


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_matrices_move_as_torch_moves_them():
    """torch's iterates in bfloat16, hence the tolerance; directions that differ would be off by all of a step."""
    ours, theirs = (
        nn.Sequential(nn.Linear(24, 48, bias=False), nn.Linear(48, 24, bias=False)) for _ in range(2)
    )
    theirs.load_state_dict(ours.state_dict())
    before = [p.detach().clone() for p in ours.parameters()]
    mine = optimizer_of(ours, settings())
    reference = torch.optim.Muon(
        theirs.parameters(), lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        for network, optimizer in ((ours, mine), (theirs, reference)):
            give_gradients(network, seed)
            optimizer.step()
    for start, found, wanted in zip(before, ours.parameters(), theirs.parameters(), strict=True):
        assert (found - wanted).norm() < 0.02 * (wanted - start).norm()


def test_a_kernel_is_a_matrix_of_output_channels_by_all_else():
    kernel, matrix = nn.Conv3d(16, 20, 2, bias=False), nn.Linear(128, 20, bias=False)
    with torch.no_grad():
        kernel.weight.copy_(matrix.weight.view(20, 16, 2, 2, 2))
    kernel.to(memory_format=torch.channels_last_3d)
    gradient = torch.randn(20, 128)
    kernel.weight.grad, matrix.weight.grad = gradient.view(20, 16, 2, 2, 2).clone(), gradient.clone()
    for network in (kernel, matrix):
        optimizer_of(network, settings()).step()
    torch.testing.assert_close(kernel.weight.flatten(1), matrix.weight)


def test_queries_keys_and_values_are_three_matrices():
    network = decoder()
    qkv = network.blocks[0].attention.qkv.weight
    before = qkv.detach().clone()
    give_gradients(network)
    optimizer_of(network, TrainingConfig(weight_decay=0.0, muon=MuonConfig(momentum=0.0))).step()
    expected = orthogonalise(qkv.grad.view(3, 32, 32)).view(96, 32) * 0.2 * 32**0.5
    torch.testing.assert_close((before - qkv) / 1e-2, expected, rtol=1e-3, atol=1e-3)


def test_what_is_no_hidden_matrix_moves_as_under_adamw():
    ours, reference = decoder(), decoder()
    hidden = {id(p) for p in hidden_matrices(ours)}
    pairs = [
        (ours, optimizer_of(ours, settings())),
        (reference, optimizer_of(reference, TrainingConfig(weight_decay=0.1))),
    ]
    assert [type(optimizer) for _, optimizer in pairs] == [Muon, torch.optim.AdamW]
    for seed in range(3):
        for network, optimizer in pairs:
            give_gradients(network, seed)
            optimizer.step()
    for found, wanted in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.equal(found, wanted) == (id(found) not in hidden)


def test_hidden_matrices_of_the_networks():
    network = decoder()
    names = {id(p): name for name, p in network.named_parameters()}
    found = {names[id(p)]: parts for p, parts in hidden_matrices(network).items()}
    layers = {"attention.qkv": 3, "attention.out": 1, "mlp.0": 1, "mlp.2": 1}
    assert found == {f"blocks.{k}.{name}.weight": parts for k in range(2) for name, parts in layers.items()}

    autoencoder = AutoencoderFSQ(
        levels=(5, 5), num_channels=(16, 32), num_res_blocks=(1, 1), norm_num_groups=8
    )
    names = {id(p): name for name, p in autoencoder.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(autoencoder)}
    ends = {
        name
        for name, p in autoencoder.named_parameters()
        if p.ndim == 5 and min(p.shape[:2]) < 16  # voxels, codes
    }
    assert hidden == {name for name, p in autoencoder.named_parameters() if p.ndim == 5} - ends
    assert len(ends) == 6

    flow = DiffusionModelRF(
        latent_channels=4, num_channels=(32, 32), attention_levels=(False, True), num_head_channels=(0, 16),
        num_res_blocks=1, norm_num_groups=8, num_class_embeds=2, include_top_region_index_input=True,
        include_bottom_region_index_input=True,
    )  # fmt: skip
    names = {id(p): name for name, p in flow.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(flow)}
    vectors = ("time_emb", "class_embedding", "spacing_layer", "region_index_layer")
    assert not any(part in name for part in vectors for name in hidden)
    left = {name for name, p in flow.named_parameters() if p.ndim > 1} - hidden
    assert all(name.startswith(("conv_in", "out.")) or any(part in name for part in vectors) for name in left)


def test_how_many_are_stepped_at_a_time_changes_nothing(monkeypatch):
    networks = decoder(), decoder()
    for network, together in zip(networks, (1, 2**24), strict=True):
        monkeypatch.setattr(optimizers, "_TOGETHER", together)
        give_gradients(network)
        optimizer_of(network, settings()).step()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [TrainingConfig(weight_decay=0.1), settings()])
def test_biases_and_norms_are_not_decayed_and_frozen_weights_not_trained(training):
    network = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32).requires_grad_(False))
    groups = optimizer_of(network, training).param_groups
    kept = {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]}
    assert kept == {(32, 32): 0.1, (32,): 0.0}
    assert sum(len(group["params"]) for group in groups) == 4


def test_a_discriminator_keeps_adamw():
    optimizer = build_optimizer(nn.Linear(32, 32), settings(), rate=1e-3, main=False)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_state_goes_on_where_it_was():
    whole_run, first, second = decoder(), decoder(), decoder()
    straight, before, after = (optimizer_of(network, settings()) for network in (whole_run, first, second))
    for seed in range(2):
        give_gradients(whole_run, seed)
        straight.step()
    give_gradients(first, 0)
    before.step()
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    give_gradients(second, 1)
    after.step()
    for found, wanted in zip(second.parameters(), whole_run.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_sharded_weights_move_alike():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        reference, network = decoder(), decoder()
        shard(network, init_device_mesh("cpu", (1,)))
        pairs = [(net, optimizer_of(net, settings())) for net in (reference, network)]
        give_gradients(reference)
        for sharded, plain in zip(network.parameters(), reference.parameters(), strict=True):
            sharded.grad = torch.distributed.tensor.distribute_tensor(
                plain.grad.clone(), sharded.device_mesh, sharded.placements
            )
        for _, optimizer in pairs:
            optimizer.step()
        for found, wanted in zip(network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(whole(found), wanted, rtol=0, atol=1e-7)
    finally:
        dist.destroy_process_group()


def test_a_closure_is_called_with_gradients():
    network = nn.Linear(16, 16)
    optimizer = optimizer_of(network, settings())

    def closure():
        loss = network(torch.ones(1, 16)).square().sum()
        loss.backward()
        return loss

    before = closure().detach()
    optimizer.zero_grad()
    assert torch.equal(optimizer.step(closure).detach(), before)
    assert closure() < before


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_is_below_one(momentum):
    with pytest.raises(ValueError, match="momentum"):
        MuonConfig(momentum=momentum)
