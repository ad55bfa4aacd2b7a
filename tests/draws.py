"""Random numbers of tests, the same in every run: generators, and networks that no longer answer zero."""

from typing import TypeVar

import torch
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
