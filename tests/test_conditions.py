"""Every condition moves, joins, is cut and is dropped in the same way."""

import pytest
import torch

from prod9.controlnet.condition import ControlCondition
from prod9.diffusion.condition import FlowCondition
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.modality_processor import InContextCondition

LABEL = torch.tensor([1, 2])
CONDITIONS = [
    MaskGiTCondition(LABEL, source_latent=torch.rand(2, 3, 1, 1, 1)),
    InContextCondition(LABEL, torch.tensor([[0, 1], [3, -1]]), torch.rand(2, 2, 3, 1, 1, 1)),
    FlowCondition.of_heads(LABEL, torch.ones(2, 3)),
    ControlCondition(torch.zeros(2, 4, 4, 4, dtype=torch.uint8), images=torch.rand(2, 1, 4, 4, 4)),
]


def same(one, other):
    assert type(one) is type(other)
    assert one.given.keys() == other.given.keys()
    return all(torch.equal(value, other.given[name]) for name, value in one.given.items())


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: type(c).__name__)
def test_halves_join_to_the_whole(condition):
    whole = condition.drop(torch.tensor([True, False]))
    assert len(whole) == 2
    assert same(condition[:1].unconditional().cat(condition[1:]).cat(condition), whole.cat(condition))


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: type(c).__name__)
def test_a_condition_moves_with_all_of_its_tensors(condition):
    moved = condition.to("meta")
    assert moved.device.type == "meta"
    assert {value.device.type for value in moved.given.values()} == {"meta"}
    assert moved.given.keys() == condition.given.keys()
    assert condition.device.type == "cpu"


def test_a_field_of_one_condition_only_is_refused():
    with pytest.raises(ValueError, match="source_latent: expected in both conditions or in neither"):
        CONDITIONS[0].cat(MaskGiTCondition(LABEL))
