"""Shards networks over processes (FSDP2): each keeps a slice of every weight, and gathers whole weights for use.

A *unit* is gathered at once: a block of the transformer, a level of the U-Net, and, as the last unit, the rest of the
network. Every computation with the weights of a unit has to begin in a method that is registered here. All processes
have to call these methods equally often and in the same order; otherwise they wait for each other.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.generator.token_decoder import AbstractTokenDecoder

BLOCK_METHODS = ("modulate", "read", "keys", "each")
"""What decoders call of their blocks beside ``forward``."""


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Replace, in place, the parameters of ``network`` by slices along their first axis, one per process of ``mesh``.

    All processes must hold the same, contiguous weights before. They move to the device of ``mesh`` unit by unit, so
    that no device ever holds a whole network. Raises TypeError for networks other than decoders of tokens and
    DiffusionModelRF.
    """
    for unit in _units(network):
        fully_shard(unit, mesh=mesh)
        for method in BLOCK_METHODS:
            if hasattr(unit, method):
                register_fsdp_forward_method(unit, method)
    fully_shard(network, mesh=mesh)
    if isinstance(network, AbstractTokenDecoder):
        register_fsdp_forward_method(network, "prepare")


def reshard(module: nn.Module) -> None:
    """Drop the whole weights of the last forward pass; ``parameters()`` are slices again.

    The last unit stays gathered after a forward pass, for the backward pass that follows at once in training.
    Modules that are not sharded stay as they are.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor; all processes must call it. Returns any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds: all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(content: Any, *, keep: bool) -> Any:
    """Return nested dictionaries and lists with every sharded tensor whole, on the CPU.

    All processes must call it with the same structure. keep: False on processes that do not need the result; their
    sharded tensors become None, so that they hold only one whole tensor at a time.
    """
    if isinstance(content, DTensor):
        full = content.full_tensor().detach()
        return full.cpu() if keep else None
    if isinstance(content, dict):
        return {name: gather(value, keep=keep) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(gather(value, keep=keep) for value in content)
    return content


def slice_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict with the state of each weight sliced like that weight.

    state: of whole weights, in the order of ``optimizer``'s. Numbers and counters stay as they are.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    sliced = {
        number: {name: slice_like(value, like[number]) for name, value in kept.items()}
        for number, kept in state["state"].items()
    }
    return state | {"state": sliced}


def slice_like(value: Any, parameter: Tensor) -> Any:
    """Return a whole tensor sliced like ``parameter``; values of another shape or type as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    # src_data_rank None: each process slices its own copy, which is the same, and nothing is sent.
    return distribute_tensor(
        value.to(mesh.device_type), mesh, cast(Any, parameter.placements), src_data_rank=None
    )


def _units(network: nn.Module) -> Iterator[nn.Module]:
    if isinstance(network, AbstractTokenDecoder):
        yield from network.blocks
    elif isinstance(network, DiffusionModelRF):
        yield from (*network.down_blocks, network.middle_block, *network.up_blocks)
    else:
        raise TypeError(
            f"network: expected a decoder of tokens or a DiffusionModelRF to shard, got {type(network).__name__}; "
            "add its units to prod9.training.sharding."
        )
