"""DetailTrainer: what the loss is of, which noise is told, and what is measured."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prod9.detail.condition import DetailCondition
from prod9.detail.flow import DetailFlow
from prod9.measures.denoise import denoised
from prod9.measures.noise import noise_level
from prod9.training.algorithms.detail_trainer import DetailPairs, DetailTrainer

SIDES = (20, 20, 20)
FLOW = DetailFlow(start_noise=0.05, residual=0.05)


def pairs(level: float = 0.03) -> DetailPairs:
    generator = torch.Generator().manual_seed(0)
    head = torch.zeros(2, 1, *SIDES, dtype=torch.bool)
    head[:, :, 2:-2, 2:-2, 2:-2] = True
    tissue = torch.where(torch.arange(SIDES[0]).view(1, 1, -1, 1, 1) < 10, 0.3, 0.7)
    noise = level * torch.randn(2, 1, *SIDES, generator=generator)
    scan = torch.where(head, tissue + noise, 0.0)
    soft = torch.where(head, tissue.expand_as(scan), 0.0)
    told = DetailCondition(soft, torch.tensor([0, 1]), noise_level(scan, head)[:, 0], head)
    return DetailPairs(told, scan, denoised(scan, head), scan > 0.75)


class Recorder:
    """Answers 0 and keeps what it was told."""

    def __init__(self) -> None:
        self.noise: list[Tensor] = []

    def __call__(self, drawn: Tensor, time: Tensor, condition: DetailCondition) -> Tensor:
        self.noise.append(condition.noise)
        return torch.zeros_like(drawn)


def loss(trainer: DetailTrainer, given: DetailPairs, seed: int = 0) -> float:
    return trainer.compute_losses(given, generator=torch.Generator().manual_seed(seed))["total"].item()


def test_told_levels_are_those_of_the_scans_that_are_trained_on() -> None:
    given = pairs()
    plain = Recorder()
    loss(DetailTrainer(network=plain, flow=FLOW, level_share=0.0), given)
    torch.testing.assert_close(plain.noise[0], given.told.noise, atol=2e-3, rtol=0)
    varied = Recorder()
    trainer = DetailTrainer(network=varied, flow=FLOW, level_share=1.0, max_level=2.0)
    for seed in range(24):
        loss(trainer, given, seed)
    levels = torch.cat(varied.noise)
    assert levels.min() < 0.006
    assert 0.048 < levels.max() < 0.07


def test_the_loss_is_the_squared_velocity_that_is_left() -> None:
    given = replace(pairs(), region=torch.zeros(2, 1, *SIDES, dtype=torch.bool))

    class Exact:
        """Has the answer, from the pairs."""

        def __call__(self, unit: Tensor, time: Tensor, condition: DetailCondition) -> Tensor:
            t = time.view(-1, 1, 1, 1, 1).double()
            spread = ((1 - t) ** 2 * 0.05**2 + t**2 * 0.05**2).sqrt()
            drawn = unit.double() * spread
            wanted = (given.scan - condition.soft - drawn) / (1 - t)
            guess = (2 * t - 1) * 0.05**2 / spread**2 * drawn
            return torch.where(condition.head, (wanted - guess) * spread / 0.05**2, 0.0)

    exact = loss(DetailTrainer(network=Exact(), flow=FLOW, level_share=0.0), given)
    nothing = loss(DetailTrainer(network=Recorder(), flow=FLOW, level_share=0.0), given)
    assert exact < 1e-4 < 0.1 < nothing


def test_regions_weigh_more() -> None:
    given = pairs()
    even, weighed = (
        loss(DetailTrainer(network=Recorder(), flow=FLOW, region_weight=weight), given)
        for weight in (1.0, 9.0)
    )
    assert even != pytest.approx(weighed, rel=1e-3)


def test_scores_of_the_scan_itself_are_those_of_a_perfect_volume() -> None:
    given = pairs()
    perfect = replace(given, told=replace(given.told, soft=given.scan))
    trainer = DetailTrainer(network=Recorder(), flow=FLOW, steps=2)
    scores = trainer.compute_metrics(perfect, generator=torch.Generator().manual_seed(0))
    assert scores["noise_soft"].item() == pytest.approx(1.0, abs=1e-5)
    assert scores["edges_soft"].item() == pytest.approx(1.0, abs=1e-5)
    assert scores["psnr_fitted_soft"] == 100.0
    # Without an answer, one step ends where it began, and two do not.
    assert scores["psnr_fitted_1"] > 80.0 > 40.0 > scores["psnr_fitted"]
    soft = trainer.compute_metrics(given, generator=torch.Generator().manual_seed(0))
    assert soft["noise_soft"] < 0.05
    assert soft["noise"] > 0.5
