"""The detail flow against closed forms: ends of the line, oracles, noise of its own, and what a network is told."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prod9.detail.condition import DetailCondition
from prod9.detail.flow import DetailFlow
from prod9.detail.network import DetailNetwork
from tests.networks import shaken

SIDES = (6, 8, 6)


def volumes(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, *SIDES, generator=torch.Generator().manual_seed(seed))


def told(count: int = 2, *, sources: int = 0, **changes: Tensor) -> DetailCondition:
    soft = volumes(count)
    more = {}
    if sources:
        held = torch.rand(count, sources, *SIDES, generator=torch.Generator().manual_seed(5))
        more = {"sources": held, "present": torch.arange(sources).expand(count, sources) != 1}
    head = torch.zeros_like(soft, dtype=torch.bool)
    head[:, :, 1:-1, 1:-1, 1:-1] = True
    condition = DetailCondition(
        soft * head, torch.arange(count) % 4, torch.full((count,), 0.03), head, **more
    )
    return replace(condition, **changes)


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(count)]


def no_answer(drawn: Tensor, time: Tensor, condition: DetailCondition) -> Tensor:
    return torch.zeros_like(drawn)


class Oracle:
    """Knows the scan, and so the velocity at every point: (detail − drawn) / (1 − t)."""

    def __init__(self, flow: DetailFlow, scan: Tensor) -> None:
        self.flow, self.scan = flow, scan

    def __call__(self, unit: Tensor, time: Tensor, condition: DetailCondition) -> Tensor:
        t, s2, r2 = time.view(-1, 1, 1, 1, 1).double(), self.flow.start_noise**2, self.flow.residual**2
        spread = ((1 - t) ** 2 * s2 + t**2 * r2).sqrt()
        drawn = unit.double() * spread
        wanted = (self.scan - condition.soft - drawn) / (1 - t)
        guess = (t * r2 - (1 - t) * s2) / spread**2 * drawn
        answer = (wanted - guess) * spread / (self.flow.start_noise * self.flow.residual)
        return torch.where(condition.head, answer, 0.0)


@settings(deadline=None, max_examples=20)
@given(
    steps=st.integers(1, 8),
    start_noise=st.floats(0.01, 0.3),
    residual=st.floats(0.01, 0.3),
    seed=st.integers(0, 99),
)
def test_with_an_oracle_every_number_of_steps_ends_at_the_scan(
    steps: int, start_noise: float, residual: float, seed: int
) -> None:
    flow, condition = DetailFlow(start_noise=start_noise, residual=residual), told()
    scan = volumes(seed=1) * condition.head
    made = flow.sample(Oracle(flow, scan), condition, steps, generators(2, seed))
    torch.testing.assert_close(made, scan, atol=1e-4, rtol=0)


def test_without_an_answer_one_step_leaves_the_soft_volume() -> None:
    condition = told()
    made = DetailFlow(start_noise=0.1, residual=0.02).sample(no_answer, condition, 1, generators(2))
    torch.testing.assert_close(made, condition.soft, atol=1e-6, rtol=0)


def test_without_an_answer_many_steps_carry_the_noise_to_the_residual() -> None:
    soft = torch.full((1, 1, 24, 24, 24), 0.5)
    condition = DetailCondition(soft, torch.tensor([0]), torch.tensor([0.0]), soft > 0)
    # The best linear guess alone is the flow between two normal distributions.
    made = DetailFlow(start_noise=0.05, residual=0.08).sample(no_answer, condition, 400, generators(1))
    assert (made - soft).std().item() == pytest.approx(0.08, rel=0.05)


def test_the_line_begins_with_noise_and_ends_at_the_scan() -> None:
    flow, condition = DetailFlow(start_noise=0.1, residual=0.05), told()
    scan, noise = volumes(seed=1) * condition.head, torch.randn(2, 1, *SIDES)
    first, velocity = flow.between(condition, scan, noise, torch.zeros(2))
    torch.testing.assert_close(first, 0.1 * noise * condition.head)
    last, same = flow.between(condition, scan, noise, torch.ones(2))
    torch.testing.assert_close(condition.soft + last, scan)
    torch.testing.assert_close(velocity, same)
    torch.testing.assert_close(first + velocity, last)


@pytest.mark.parametrize("sources", [0, 4])
def test_a_sample_depends_on_its_own_generator_alone(sources: int) -> None:
    network = shaken(
        DetailNetwork(num_sources=sources, num_channels=(8, 16), detail_channels=4), "cpu"
    ).eval()
    flow, condition = DetailFlow(), told(3, sources=sources)
    together = flow.sample(network, condition, 3, generators(3))
    assert not together[~condition.head].any()
    for k in range(3):
        alone = flow.sample(network, condition[k : k + 1], 3, generators(1, k))
        torch.testing.assert_close(alone, together[k : k + 1], atol=1e-5, rtol=0)


def test_before_training_the_network_answers_0_on_any_sides() -> None:
    network = DetailNetwork(num_channels=(8, 16, 16), detail_channels=4)
    condition = told()
    assert not network(volumes(seed=2), torch.tensor([0.0, 0.7]), condition).any()


def test_all_that_the_network_is_told_counts_and_absent_sources_do_not() -> None:
    network = shaken(DetailNetwork(num_sources=4, num_channels=(8, 16), detail_channels=4), "cpu").eval()
    condition, drawn, time = told(1, sources=4), volumes(1, seed=2), torch.tensor([0.3])
    assert condition.sources is not None
    assert condition.present is not None
    with torch.no_grad():
        base = network(drawn, time, condition)
        changed = {
            "time": network(drawn, time + 0.5, condition),
            "drawn": network(drawn + 0.1, time, condition),
            "noise": network(drawn, time, replace(condition, noise=condition.noise * 2)),
            "label": network(drawn, time, replace(condition, label=condition.label + 1)),
            "soft": network(drawn, time, replace(condition, soft=condition.soft + 0.1)),
            "present": network(drawn, time, replace(condition, present=~condition.present)),
            "sources": network(drawn, time, replace(condition, sources=condition.sources + 0.1)),
        }
        for name, answer in changed.items():
            assert not torch.equal(answer, base), name
        held = condition.sources.clone()
        held[:, 1] = 0.9  # absent
        assert torch.equal(network(drawn, time, replace(condition, sources=held)), base)


def test_single_voxels_are_decided_at_full_resolution_and_guided_from_afar() -> None:
    network = shaken(DetailNetwork(num_channels=(8, 16), detail_channels=4, detail_convs=1), "cpu").eval()
    condition, time = told(1), torch.tensor([0.5])
    brighter = torch.zeros(1, 1, *SIDES)
    brighter[0, 0, 3, 3, 3] = 1.0

    def reach() -> list[int]:
        with torch.no_grad():
            change = network(brighter, time, condition) - network(brighter * 0, time, condition)
        places = (change[0, 0] != 0).nonzero()
        return [*places.amin(0).tolist(), *places.amax(0).tolist()]

    everywhere = [1, 1, 1, *(side - 2 for side in SIDES)]
    assert reach() == everywhere
    with torch.no_grad():
        network.guide.weight.zero_()
    assert reach() == [2, 2, 2, 4, 4, 4]


def test_sources_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one channel for each of 0 classes, got 4"):
        DetailNetwork()(volumes(), torch.zeros(2), told(sources=4))
    with pytest.raises(ValueError, match="expected one channel for each of 4 classes, got 0"):
        DetailNetwork(num_sources=4)(volumes(), torch.zeros(2), told())


@pytest.mark.parametrize("wrong", [{"start_noise": 0.0}, {"residual": -1.0}])
def test_a_flow_without_noise_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected above 0"):
        DetailFlow(**wrong)
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        DetailFlow().sample(no_answer, told(), 0, generators(2))
