"""Losses of the rectified flow against closed forms."""

import pytest
import torch

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.training.algorithms.diffusion_trainer import DiffusionTrainer

X = torch.randn(8, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
CONDITION = FlowCondition(torch.arange(1, 9), torch.ones(8, 3))


class Network:
    """Knows the data: the velocity at x_t = (1−t)·x_0 + t·noise is (x_0 − x_t) / t."""

    def __init__(self, *, knows=True):
        self.knows = knows
        self.labels = []
        self.times = []

    def predict(self, x_t, timesteps, condition):
        self.labels.append(condition.label)
        self.times.append(timesteps)
        t = (timesteps / 1000).view(-1, 1, 1, 1, 1)
        return (X - x_t) / t.clamp_min(1e-3) if self.knows else torch.zeros_like(x_t)


def trainer(network, **options):
    return DiffusionTrainer(network=network, scheduler=RectifiedFlowSchedulerRF(), **options)


def generator():
    return torch.Generator().manual_seed(1)


def test_a_network_that_knows_the_data_has_no_loss():
    losses = trainer(Network(), condition_dropout=0.0).compute_losses(X, CONDITION, generator=generator())
    assert losses["total"] < 1e-4


def test_zero_velocity_loses_the_power_of_data_and_noise():
    for distance, expected in (("l2", 2.0), ("l1", 2.0 / torch.pi**0.5)):
        # x_0 − noise is normal with variance 2; its mean absolute value is 2/√π.
        algorithm = trainer(Network(knows=False), distance=distance)
        losses = algorithm.compute_losses(X, CONDITION, generator=generator())
        assert abs(float(losses["total"]) - expected) < 0.15


def test_labels_are_dropped_to_unknown_at_their_rate():
    network = Network(knows=False)
    algorithm = trainer(network, condition_dropout=0.5)
    draws = generator()
    for _ in range(50):
        algorithm.compute_losses(X, CONDITION, generator=draws)
    share = (torch.cat(network.labels) == 0).float().mean()
    assert abs(float(share) - 0.5) < 0.1


def test_metrics_are_taken_near_data_and_near_noise():
    network = Network(knows=False)
    metrics = trainer(network).compute_metrics(X, CONDITION, generator=generator())
    assert set(metrics) == {"loss", "loss_near_data", "loss_near_noise"}
    torch.testing.assert_close(network.times[1], torch.full((8,), 200.0))
    torch.testing.assert_close(network.times[2], torch.full((8,), 800.0))
    assert all((labels > 0).all() for labels in network.labels)  # nothing is dropped in evaluation


def test_the_same_generator_gives_the_same_loss():
    algorithm = trainer(Network(knows=False))
    one, two = (algorithm.compute_losses(X, CONDITION, generator=generator())["total"] for _ in range(2))
    assert torch.equal(one, two)


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="one of l2, l1, got 'huber'"):
        trainer(Network(), distance="huber")
