"""RefinerTrainer: its loss terms, regions and metrics."""

import pytest
import torch

from prod9.generator.refiner import Refined, Refiner
from prod9.training.algorithms.refiner_trainer import RefinerInputs, RefinerTrainer
from tests.draws import repeated


def keep_decoded(decoded, sources, present, target_label):
    return Refined(decoded, torch.full_like(decoded, 0.1))


def batch(count=2, side=8):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(count, 1, side, side, side, generator=generator) + 0.1
    target[:, :, :2] = 0.0  # background
    sources = torch.rand(count, 2, side, side, side, generator=generator)
    present = torch.ones(count, 2, dtype=torch.bool)
    inputs = RefinerInputs(target * 0.5 + 0.2, sources, present, torch.zeros(count, dtype=torch.int64))
    return inputs, target


def losses(trainer, *given):
    return trainer.compute_losses(*given, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_a_perfect_result_costs_nothing(reconstruction):
    _, target = batch()
    trainer = RefinerTrainer(
        refiner=lambda *_: Refined(
            target, torch.full_like(target, 0.5)
        ),  # 2 · 0.5 is 1, whose logarithm is 0
        reconstruction=reconstruction,
        decoded_dropout=0.0,
    )
    assert losses(trainer, *batch())["total"] == pytest.approx(0.0, abs=1e-9)


def test_an_affine_map_of_the_target_costs_no_fit():
    trainer = RefinerTrainer(refiner=keep_decoded, decoded_dropout=0.0, fit_weight=2.0)
    values = losses(trainer, *batch())
    assert values["fit"] == pytest.approx(0.0, abs=1e-9)
    assert values["reconstruction"] > 0.01
    assert values["total"] == pytest.approx(
        values["reconstruction"] + 2 * values["fit"] + 0.01 * values["expected_error"]
    )


def test_the_background_weighs_what_it_is_told():
    inputs, target = batch()
    off = RefinerInputs(target + 0.1 * (target == 0), inputs.sources, inputs.present, inputs.target_label)
    for weight, expected in ((0.0, 0.0), (1.0, 0.1 * 0.25)):  # a quarter of the voxels
        trainer = RefinerTrainer(
            refiner=keep_decoded,
            reconstruction="l1",
            background_weight=weight,
            fit_weight=0.0,
            decoded_dropout=0.0,
        )
        assert losses(trainer, off, target)["reconstruction"] == pytest.approx(expected, abs=1e-7)


def test_a_region_weighs_what_it_is_told():
    inputs, target = batch()
    region = torch.zeros_like(target, dtype=torch.bool)
    region[:, :, 2:4] = True  # a third of the brain
    off = RefinerInputs(target + 0.1 * region, inputs.sources, inputs.present, inputs.target_label)
    for weight in (1.0, 5.0):
        trainer = RefinerTrainer(
            refiner=keep_decoded,
            reconstruction="l1",
            background_weight=0.0,
            region_weight=weight,
            decoded_dropout=0.0,
        )
        generator = torch.Generator().manual_seed(0)
        values = trainer.compute_losses(off, target, generator=generator, region=region)
        assert values["reconstruction"] == pytest.approx(0.1 * weight / (weight + 2), rel=1e-4)
        plain = losses(trainer, off, target)["fit"]
        assert values["fit"] == plain if weight == 1.0 else values["fit"] > plain


def test_the_best_expected_error_is_the_mean_absolute_error():
    inputs, target = batch()
    log_error = torch.tensor(0.0, requires_grad=True)

    def refine(decoded, sources, present, target_label):
        return Refined(decoded, log_error.exp().expand_as(decoded))

    trainer = RefinerTrainer(refiner=refine, decoded_dropout=0.0)
    brain = target > 0
    actual = (inputs.decoded - target).abs()[brain].mean()
    for factor, sign in ((0.5, -1), (1.0, 0), (2.0, 1)):
        log_error.data = (actual * factor).log()
        (slope,) = torch.autograd.grad(losses(trainer, inputs, target)["expected_error"], log_error)
        assert slope.sign() == sign or slope.abs() < 1e-5
    metrics = trainer.compute_metrics(inputs, target)
    assert metrics["error"] == pytest.approx(actual.item(), rel=1e-5)
    assert metrics["expected_error"] == pytest.approx(2 * actual.item(), rel=1e-5)


def test_dropout_zeroes_whole_decoded_targets():
    seen = []

    def note(decoded, sources, present, target_label):
        seen.append(decoded)
        return keep_decoded(decoded, sources, present, target_label)

    inputs, target = batch(count=64, side=4)
    losses(RefinerTrainer(refiner=note, decoded_dropout=0.5), inputs, target)
    zeroed = ~seen[0].flatten(1).any(1)
    assert 16 <= int(zeroed.sum()) <= 48
    assert torch.equal(seen[0][~zeroed], inputs.decoded[~zeroed])


def test_metrics_tell_both_halves_of_the_input_apart():
    inputs, target = batch()
    metrics = RefinerTrainer(refiner=keep_decoded).compute_metrics(inputs, target)
    # What was decoded is an affine map of the target; zeros say nothing but its mean.
    assert metrics["psnr_fitted_decoded"] == metrics["psnr_fitted"] > 60
    assert metrics["psnr_fitted_sources"] < 15
    assert metrics["psnr"] < 25


def test_it_learns_to_add_the_detail_of_a_source():
    torch.manual_seed(0)
    refiner = Refiner(num_classes=2, num_channels=(8, 8), space_to_depth=2)
    trainer = RefinerTrainer(refiner=refiner, reconstruction="l2", decoded_dropout=0.0)
    inputs, target = batch()
    smooth = torch.nn.functional.avg_pool3d(target, 3, 1, 1)
    sources = torch.cat([1 - target, inputs.sources[:, 1:]], dim=1)  # the target, inverted
    given = RefinerInputs(smooth, sources, inputs.present, inputs.target_label)
    optimizer = torch.optim.Adam(refiner.parameters(), lr=1e-2)
    before = trainer.compute_metrics(given, target)["psnr_fitted"]
    for _ in repeated(60):
        optimizer.zero_grad()
        losses(trainer, given, target)["total"].backward()
        optimizer.step()
    assert trainer.compute_metrics(given, target)["psnr_fitted"] > before + 3
