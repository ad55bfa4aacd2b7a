"""Random numbers of tests, the same in every run: generators, and networks that no longer answer zero."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from jaxtyping import config
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(network: Network, *, std: float = 0.2, seed: int = 1) -> Network:
    """Draw all weights anew: a fresh network answers zero whatever its input, and equals anything."""
    generator = seeded(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network


def repeated(count: int) -> Iterator[int]:
    """Yield the numbers of the steps of a toy training, whose shapes are checked in the first one alone.

    The others have the same shapes, and checks of such small networks take a third of the time.
    """
    yield 0
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield from range(1, count)
    finally:
        config.update("jaxtyping_disable", before)
