"""What tests of the sampler start from: a grid of 48 tokens, and conditions and generators for a batch."""

from typing import Any

import torch

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from tests.draws import seeded

ORDERS = ("confidence", "halton", "random")
GRID = (2, 4, 6)


def make_sampler(scheduler_type: str = "arccos", **kwargs: Any) -> MaskGiTSampler:
    return MaskGiTSampler(scheduler=MaskGiTScheduler(scheduler_type=scheduler_type), **kwargs)


def make_condition(batch: int) -> MaskGiTCondition:
    return MaskGiTCondition(label=torch.arange(batch) % 3)


def make_generators(batch: int) -> list[torch.Generator]:
    return [seeded(100 + k) for k in range(batch)]
