"""A sampling run in a fixed order does the same operations whatever is drawn, so that graphs can replay it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.transformer import TransformerDecoder
from tests.draws import shaken


class Recorded(TorchDispatchMode):
    """Writes down each operator and the shapes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[torch.Size, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = tuple(leaf.shape for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
        self.calls.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "how", [{"order": "halton"}, {"order": "halton", "guidance_scale": 1.5}, {"order": "random"}]
)
def test_operations_do_not_depend_on_what_is_drawn(how):
    decoder = shaken(TransformerDecoder(levels=[4, 3], embed_dim=24, num_blocks=2, num_heads=2)).eval()
    sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=4, **how)

    def calls(seed: int) -> list[Any]:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(2)]
        condition = MaskGiTCondition(torch.tensor([seed % 3, 1]))
        with Recorded() as recorded:
            sampler.sample(decoder, (2, 3, 4, 3), condition, generators)
        return recorded.calls

    calls(0)  # orders and tables are kept from then on
    one, two = calls(1), calls(2)
    assert len(one) > 100
    assert one == two
