"""Small tensors whose values the host knows too, so that looking at them does not wait for their device.

A GPU works behind the program that feeds it, and each look at a number on it makes the program wait until all work
before that number is done. Labels, lengths and draws of a step come from the host anyway; what is kept here spares the
way back. On a CPU every function returns what it was given.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_companions: WeakKeyDictionary[torch.Generator, torch.Generator] = WeakKeyDictionary()


def with_host_copy(tensor: Tensor, copy: Tensor) -> Tensor:
    """Return ``tensor``, whose values ``copy`` has on the CPU; neither may be changed in place afterwards."""
    tensor._on_host = copy  # pyrefly: ignore[missing-attribute]
    return tensor


def is_known(tensor: Tensor) -> bool:
    """Return whether the host has the values of ``tensor``."""
    return tensor.device.type == "cpu" or hasattr(tensor, "_on_host")


def on_host(tensor: Tensor) -> Tensor:
    """Return the values of ``tensor`` on the CPU; waits for its device only where the host does not know them."""
    if tensor.device.type == "cpu":
        return tensor
    known: Tensor | None = getattr(tensor, "_on_host", None)
    return tensor.cpu() if known is None else known


def placed(values: Tensor, device: torch.device | str) -> Tensor:
    """Return ``values`` of the CPU on ``device``, without waiting for it; the host still knows them."""
    device = torch.device(device)
    if device.type == "cpu":
        return values
    return with_host_copy(values.to(device, non_blocking=device.type == "cuda"), values)


def computed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return ``function`` of ``tensors``; the host knows the result if it knows all of them."""
    result = function(*tensors)
    if result.device.type != "cpu" and all(map(is_known, tensors)):
        with_host_copy(result, function(*map(on_host, tensors)))
    return result


def host_generator(generator: torch.Generator) -> torch.Generator:
    """Return what draws for the host beside ``generator``: on a CPU itself, else another with a seed from its own."""
    if generator.device.type == "cpu":
        return generator
    if generator not in _companions:
        # The golden ratio, as in SplitMix64: not the numbers of a CPU generator with the same seed.
        seed = (generator.initial_seed() + 0x9E3779B97F4A7C15) % 2**63
        _companions[generator] = torch.Generator().manual_seed(seed)
    return _companions[generator]


def positions(mask: Tensor, count: int | None) -> Tensor:
    """Return the flattened indices of the True places of ``mask``; count: how many there are, None if not known.

    With the known count this does not wait for a CUDA device.
    """
    if count is not None and mask.device.type == "cuda":
        return mask.flatten().nonzero_static(size=count)[:, 0]
    return mask.flatten().nonzero()[:, 0]
