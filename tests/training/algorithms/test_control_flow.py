"""ControlNetTrainer with the objective ``velocity``: what enters the loss, and that the condition is followed."""

from functools import cache

import pytest
import torch

from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.training.algorithms.control_flow import FlowControl, RegionContrast
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.algorithms.diffusion_trainer import DiffusionTrainer
from tests.draws import repeated, seeded, shaken

UNET = {
    "latent_channels": 1,
    "num_channels": (8, 16),
    "attention_levels": (False, True),
    "num_head_channels": (0, 8),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 2,
    "include_spacing_input": False,
}
GRID, FACTOR = (4, 4, 4), 2
VOXELS = tuple(FACTOR * side for side in GRID)
PLAIN = {"control_dropout": 0.0, "anchor_weight": 0.0, "background_weight": 1.0, "region_weight": 1.0}


def make_control(base, **kwargs):
    settings = UNET | {"downsampling_factor": FACTOR, "num_mask_classes": 2, "channels": (8,)} | kwargs
    settings.pop("include_spacing_input")
    network = ControlNetRF(**settings)
    network.start_from(base, geometry=FlowCondition(torch.zeros(1, dtype=torch.int64)))
    return network


def make_trainer(base=None, controlnet=None, **kwargs):
    base = base or shaken(DiffusionModelRF(**UNET))
    of_family = {name: kwargs.pop(name) for name in ("objective", "distance", "contrast") if name in kwargs}
    family = FlowControl(
        base=base.eval().requires_grad_(False),
        controlnet=controlnet or make_control(base),
        scheduler=RectifiedFlowSchedulerRF(),
        **of_family,
    )
    return ControlNetTrainer(family=family, **({"region_margin": 0} | PLAIN | kwargs))


def make_batch(batch=4):
    x_0 = torch.randn(batch, 1, *GRID, generator=seeded())
    seg = torch.zeros(batch, *VOXELS, dtype=torch.uint8)
    seg[:, :4, :, :2] = 1
    return x_0, FlowCondition(torch.ones(batch, dtype=torch.int64)), ControlCondition(seg)


def test_the_start_is_the_base_and_it_can_learn():
    trainer = make_trainer()
    metrics = trainer.compute_metrics(*make_batch(), generator=seeded())
    assert set(metrics) == {"loss", "loss_base", "loss_region", "loss_region_base"}
    torch.testing.assert_close(metrics["loss"], metrics["loss_base"], rtol=0, atol=1e-5)
    losses = trainer.compute_losses(*make_batch(), generator=seeded())
    losses["total"].backward()
    zeros = [
        p for n, p in trainer.family.controlnet.named_parameters() if n.startswith("controlnet_down_blocks")
    ]
    assert any(p.grad.any() for p in zeros)
    assert all(p.grad is not None for p in trainer.family.controlnet.parameters())
    assert all(p.grad is None for p in trainer.family.base.parameters())


def test_lesions_weigh_more_in_the_loss():
    control = shaken(make_control(shaken(DiffusionModelRF(**UNET))), seed=3)
    base = shaken(DiffusionModelRF(**UNET))
    x_0, condition, told = make_batch()
    trainer = make_trainer(base, control)
    step = trainer._step(x_0, condition, told, seeded(), None)
    errors = (step.velocity - step.sample.velocity).square().mean(1)
    inside = torch.zeros(4, *GRID, dtype=torch.bool)
    inside[:, :2, :, :1] = True

    def loss(**kwargs):
        step = make_trainer(base, control, **kwargs)._step(x_0, condition, told, seeded(), None)
        return trainer.family.velocity(step)

    torch.testing.assert_close(loss(), errors.mean())
    weights = torch.where(inside, 5.0, 1.0)
    torch.testing.assert_close(loss(region_weight=5.0), (errors * weights).sum() / weights.sum())
    absolute = make_trainer(base, control, distance="l1")
    step = absolute._step(x_0, condition, told, seeded(), None)
    torch.testing.assert_close(
        absolute.family.velocity(step), (step.velocity - step.sample.velocity).abs().mean()
    )


def test_where_nothing_is_known_the_base_is_the_target():
    base = shaken(DiffusionModelRF(**UNET))
    trainer = make_trainer(base, shaken(make_control(base), seed=3), anchor_weight=2.0)
    x_0, condition, control = make_batch()
    gone = control.drop(torch.tensor([True, False, True, False]))
    losses = trainer.compute_losses(x_0, condition, gone, generator=seeded())
    torch.testing.assert_close(losses["total"], losses["velocity"] + 2.0 * losses["anchor"])
    assert losses["anchor"] > 0
    every = trainer.compute_losses(x_0, condition, control, generator=seeded())
    assert every["anchor"] == 0
    # What is not known of a sample cannot weigh in how the condition is followed.
    changed = x_0.clone()
    changed[0] += 100.0
    again = trainer.compute_losses(changed, condition, gone, generator=seeded())
    assert torch.equal(again["velocity"], losses["velocity"])


def test_the_contrast_wants_change_inside_and_none_outside_and_its_weight_falls():
    base = shaken(DiffusionModelRF(**UNET))
    contrast = RegionContrast(weight=0.5, final_weight=0.1, switch_step=10, delta=1e3, margin=0)
    trainer = make_trainer(base, shaken(make_control(base), seed=3), contrast=contrast)
    batch = make_batch()
    early, late = (trainer.compute_losses(*batch, generator=seeded(), step=step) for step in (9, 10))
    for losses, weight in ((early, 0.5), (late, 0.1)):
        torch.testing.assert_close(losses["total"], losses["velocity"] + weight * losses["contrast"])

    generator = seeded()
    torch.rand(4, generator=generator)  # what dropout draws
    made = trainer._step(*batch, generator, None)
    x_0, condition, control = batch
    free = ControlCondition(torch.zeros_like(control.seg))
    change = (made.velocity - trainer.family._controlled(made.sample, made.times, condition, free)).abs()
    inside = torch.zeros(4, 1, *GRID, dtype=torch.bool)
    inside[:, :, :2, :, :1] = True
    expected = change[~inside].mean() - change[inside].mean()
    torch.testing.assert_close(early["contrast"], expected)
    enough = make_trainer(
        base, trainer.family.controlnet, contrast=RegionContrast(delta=0.0, margin=0)
    ).compute_losses(*batch, generator=seeded())
    torch.testing.assert_close(enough["contrast"], change[~inside].mean())
    healthy = trainer.compute_losses(x_0, condition, free, generator=seeded())
    assert healthy["contrast"] == 0


def test_what_the_family_does_not_know_is_refused():
    with pytest.raises(ValueError, match="objective: expected one of velocity, got 'cross_entropy'"):
        make_trainer(objective="cross_entropy")
    with pytest.raises(ValueError, match="distance: expected one of l2, l1, got 'huber'"):
        make_trainer(distance="huber")


# -- a toy where the segmentation determines the latent -------------------------------------------------


def toy_batch(which):
    """A latent of one sign where the segmentation is 1 and of the other elsewhere; the base is told nothing."""
    halves = torch.zeros(2, *VOXELS, dtype=torch.uint8)
    halves[0, : VOXELS[0] // 2] = 1
    halves[1, VOXELS[0] // 2 :] = 1
    seg = halves[which]
    x_0 = 2.0 * seg[:, None, ::FACTOR, ::FACTOR, ::FACTOR].float() - 1.0
    return x_0, FlowCondition(torch.zeros(len(which), dtype=torch.int64)), ControlCondition(seg)


@cache
def toy_base():
    """A flow that makes either latent, but does not know which one is wanted."""
    torch.manual_seed(0)
    base = DiffusionModelRF(**UNET)
    trainer = DiffusionTrainer(network=base, scheduler=RectifiedFlowSchedulerRF(), condition_dropout=0.0)
    optimizer = torch.optim.AdamW(base.parameters(), lr=5e-3)
    generator = seeded()
    for _ in repeated(150):
        x_0, condition, _ = toy_batch(torch.randint(2, (8,), generator=generator))
        trainer.compute_losses(x_0, condition, generator=generator)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return base.eval().requires_grad_(False)


@pytest.mark.slow
def test_the_condition_is_followed_and_without_control_it_is_not():
    base = toy_base()
    torch.manual_seed(0)
    trainer = make_trainer(base, make_control(base), control_dropout=0.1, anchor_weight=1.0)
    optimizer = torch.optim.AdamW(trainer.family.controlnet.parameters(), lr=5e-3)
    generator = seeded()
    for _ in repeated(150):
        batch = toy_batch(torch.randint(2, (8,), generator=generator))
        trainer.compute_losses(*batch, generator=generator)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    controlnet = trainer.family.controlnet.eval()
    x_0, condition, control = toy_batch(torch.arange(24) % 2)
    sampler = RectifiedFlowSampler(scheduler=trainer.family.scheduler, steps=10)

    def agreement(strength):
        drawn = sampler.sample_with_controlnet(
            base.predict, x_0.shape, condition, seeded(1), controlnet=controlnet.residuals,
            control=controlnet.encode(control), control_strength=strength,
        )  # fmt: skip
        return (drawn.sign() == x_0).double().mean().item()

    assert agreement(1.0) >= 0.95
    assert 0.2 <= agreement(0.0) <= 0.8
