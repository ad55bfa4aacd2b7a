"""ControlNetTrainer: what enters each objective, and which of them teach the condition."""

from functools import cache

import pytest
import torch

from prod9.controlnet.condition import ControlCondition
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.heads import TokenLogits, TokenVocabulary
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.transformer import TransformerDecoder
from prod9.training.algorithms.control_regions import region_of
from prod9.training.algorithms.control_tokens import TokenControl, keep_hidden, squared_distance
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from tests.draws import repeated, seeded, shaken
from tests.processes import run_ranks

GRID = (2, 2, 4)
FACTOR = 2
VOXELS = tuple(FACTOR * side for side in GRID)
PLAIN = {
    "control_dropout": 0.0,
    "anchor_weight": 0.0,
    "background_weight": 1.0,
    "region_weight": 1.0,
    "region_margin": 0,
}


def make_decoder(**kwargs):
    settings = {"levels": (4, 3), "embed_dim": 32, "num_blocks": 4, "num_heads": 2, "num_classes": 1}
    return TransformerDecoder(**(settings | {"dropout": 0.0, "groups": "per_level"} | kwargs))


def make_controlnet(decoder, **kwargs):
    settings = {"downsampling_factor": FACTOR, "num_labels": 1, "condition_type": "mask", "channels": (8, 16)}
    return ControlNetMaskGiT(base=decoder, num_mask_classes=3, **(settings | kwargs))


def make_trainer(decoder=None, controlnet=None, **kwargs):
    decoder = decoder or shaken(make_decoder(), std=0.3)
    objective = kwargs.pop("objective", "cross_entropy")
    family = TokenControl(
        decoder=decoder.eval().requires_grad_(False),
        controlnet=controlnet or make_controlnet(decoder),
        scheduler=MaskGiTScheduler(scheduler_type="arccos"),
        objective=objective,
    )
    return ControlNetTrainer(family=family, **(PLAIN | kwargs))


def make_batch(batch=4):
    tokens = torch.randint(12, (batch, *GRID), generator=seeded())
    seg = torch.randint(3, (batch, *VOXELS), generator=seeded(5)).to(torch.uint8)
    return tokens, MaskGiTCondition(label=torch.zeros(batch, dtype=torch.int64)), ControlCondition(seg)


def test_the_start_is_the_base():
    trainer = make_trainer()
    metrics = trainer.compute_metrics(*make_batch(), generator=seeded())
    for name in ("loss", "accuracy", "loss_region", "accuracy_region"):
        assert metrics[name] == metrics[f"{name}_base"]


def test_the_literal_mse_has_no_gradient_at_the_start_and_the_others_have():
    for objective in ("cross_entropy", "mse_privileged", "mse"):
        trainer = make_trainer(objective=objective)
        losses = trainer.compute_losses(*make_batch(), generator=seeded())
        assert set(losses) == {"total", objective}
        losses["total"].backward()
        moved = any(p.grad.any() for p in trainer.family.controlnet.parameters())
        assert moved == (objective != "mse")
        assert all(p.grad is not None for p in trainer.family.controlnet.parameters())
        assert all(p.grad is None for p in trainer.family.base.parameters())


def test_the_anchor_pulls_to_the_base_where_nothing_is_known_and_only_there():
    decoder = shaken(make_decoder(), std=0.3)
    trainer = make_trainer(decoder, shaken(make_controlnet(decoder), std=0.3, seed=2), anchor_weight=2.0)
    tokens, condition, control = make_batch()
    none = trainer.compute_losses(tokens, condition, control, generator=seeded())
    assert none["anchor"] == 0.0
    gone = control.drop(torch.tensor([True, False, True, False]))
    losses = trainer.compute_losses(tokens, condition, gone, generator=seeded())
    torch.testing.assert_close(losses["total"], losses["cross_entropy"] + 2.0 * losses["anchor"])

    generator = seeded()
    torch.rand(4, generator=generator)  # what dropout draws
    step = trainer._step(tokens, condition, gone, generator, None)
    base = decoder(step.sample.tokens, step.sample.mask, decoder.prepare(condition), rows=step.rows)
    mine = torch.isin(step.rows // tokens[0].numel(), torch.tensor([0, 2]))
    expected = squared_distance(step.logits, base)[mine].mean()
    torch.testing.assert_close(losses["anchor"], expected)
    assert (step.weights[mine] == 0).all()
    assert (step.weights[~mine] == 1).all()


def test_dropout_takes_control_and_half_the_time_the_condition():
    trainer = make_trainer(control_dropout=0.4)
    control = ControlCondition(torch.zeros(2000, 1, 1, 1, dtype=torch.uint8))
    condition = MaskGiTCondition(label=torch.zeros(2000, dtype=torch.int64))
    condition, control = trainer._drop(condition, control, seeded(), torch.device("cpu"))
    assert control.is_dropped.float().mean().item() == pytest.approx(0.4, abs=0.04)
    assert condition.is_dropped.float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert (control.is_dropped | ~condition.is_dropped).all()


def test_lesions_weigh_more_and_background_less():
    trainer = make_trainer(background_weight=0.25, region_weight=5.0, region_margin=1)
    seg = torch.zeros(2, *VOXELS, dtype=torch.uint8)
    seg[:, 0, 0, 7] = 2
    control = ControlCondition(seg, dropped=torch.tensor([False, True]))
    tokens = torch.zeros(2, *GRID, dtype=torch.int64)
    foreground = torch.zeros(2, *GRID, dtype=torch.bool)
    foreground[:, :, :, 1:] = True
    weights = trainer.position_weights(tokens, control, foreground)
    assert weights[0, 0, 0].tolist() == [0.25, 1.0, 5.0, 5.0]
    assert weights[1, 0, 0].tolist() == [0.25, 1.0, 1.0, 1.0]
    assert region_of(control, GRID, margin=0).sum() == 1
    assert region_of(ControlCondition(label=torch.zeros(1, dtype=torch.int64)), GRID, margin=0) is None


def test_classes_have_weights_of_their_own_and_the_largest_nearby_counts():
    trainer = make_trainer(region_weight=5.0, region_margin=1, class_weights=(1.0, 1.0, 3.0))
    seg = torch.zeros(1, *VOXELS, dtype=torch.uint8)
    seg[:, 0, 0, 1], seg[:, 0, 0, 5] = 3, 1
    tokens = torch.zeros(1, *GRID, dtype=torch.int64)
    weights = trainer.position_weights(tokens, ControlCondition(seg), None)
    assert weights[0, 0, 0].tolist() == [15.0, 15.0, 5.0, 5.0]


def test_the_teacher_sees_more_and_something_is_left_to_predict():
    mask = torch.rand(6, *GRID, generator=seeded(3)) < 0.5
    mask[0] = False
    mask[0, 0, 0, 0] = True
    hidden = keep_hidden(mask, 0.5, seeded())
    assert not (hidden & ~mask).any()
    expected = (mask.flatten(1).sum(1) * 0.5).ceil().clamp_min(1)
    assert hidden.flatten(1).sum(1).tolist() == expected.tolist()


def test_logits_count_up_to_a_constant_of_each_group():
    vocabulary = TokenVocabulary(levels=(4, 3), groups="per_level")
    one = torch.randn(5, 7, generator=seeded())
    shift = torch.cat([torch.full((5, 4), 2.0), torch.full((5, 3), -1.0)], dim=1)
    distance = squared_distance(TokenLogits(one, vocabulary), TokenLogits(one + shift, vocabulary))
    torch.testing.assert_close(distance, torch.zeros(5), atol=1e-6, rtol=0)
    assert (squared_distance(TokenLogits(one, vocabulary), TokenLogits(2 * one, vocabulary)) > 0).all()


def test_the_generator_alone_decides():
    trainer = make_trainer(control_dropout=0.5, anchor_weight=1.0)
    batch = make_batch()
    one, two, three = (trainer.compute_losses(*batch, generator=seeded(s))["total"] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_sample_metrics_are_those_of_the_features():
    volumes = torch.rand(6, 1, 4, 4, 4, generator=seeded())
    metrics = ControlNetTrainer.compute_sample_metrics(
        volumes, volumes, extractor=lambda x: x.flatten(1), classify=lambda x: torch.eye(6)
    )
    assert metrics["fid"].item() == pytest.approx(0.0, abs=1e-6)
    assert metrics["inception_score"].item() == pytest.approx(6.0)
    alone = ControlNetTrainer.compute_sample_metrics(volumes, volumes, extractor=lambda x: x.flatten(1))
    assert set(alone) == {"fid"}


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="cross_entropy, mse_privileged, mse"):
        make_trainer(objective="hinge")


# -- a toy where the condition determines the tokens ----------------------------------------------------

PATTERNS = torch.randint(12, (3, *GRID), generator=seeded(11))


def toy_batch(which):
    """Pattern k under a segmentation that is class k everywhere; the base is told nothing of k."""
    seg = which.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *VOXELS)
    condition = MaskGiTCondition(label=torch.zeros_like(which))
    return PATTERNS[which], condition, ControlCondition(seg)


@cache
def toy_base():
    """A decoder that knows the three patterns and completes them, but not which one is wanted."""
    torch.manual_seed(0)
    decoder = make_decoder()
    trainer = TransformerTrainer(
        decoder=decoder,
        scheduler=MaskGiTScheduler(scheduler_type="arccos"),
        label_smoothing=0.0,
        condition_dropout=0.0,
        background_weight=1.0,
    )
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    generator = seeded()
    for _ in repeated(250):
        tokens, condition, _ = toy_batch(torch.randint(3, (12,), generator=generator))
        trainer.compute_losses(tokens, condition, generator=generator)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.eval().requires_grad_(False)


def follow(objective, steps=200):
    """Train control on the toy; return the share of sampled tokens that are those asked for."""
    torch.manual_seed(0)
    decoder = toy_base()
    trainer = make_trainer(
        decoder, make_controlnet(decoder), objective=objective, control_dropout=0.1, anchor_weight=1.0
    )
    optimizer = torch.optim.AdamW(trainer.family.controlnet.parameters(), lr=2e-3)
    generator = seeded()
    for _ in repeated(steps):
        batch = toy_batch(torch.randint(3, (12,), generator=generator))
        trainer.compute_losses(*batch, generator=generator)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    trainer.family.controlnet.eval()
    tokens, condition, control = toy_batch(torch.arange(30) % 3)
    sampler = MaskGiTSampler(scheduler=trainer.family.scheduler, steps=6, order="halton", temperature=0.7)
    drawn = sampler.sample_with_controlnet(
        decoder,
        (30, *GRID),
        condition,
        seeded(1),
        controlnet=trainer.family.controlnet,
        control=trainer.family.controlnet.encode(control),
    )
    return (drawn == tokens).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["cross_entropy", "mse_privileged"])
def test_the_condition_is_followed(objective):
    assert follow(objective) >= 0.95


@pytest.mark.slow
def test_the_literal_mse_stays_at_chance():
    # Three patterns, equally likely under the base; some tokens are common to two of them.
    tokens = PATTERNS.flatten(1)
    chance = (tokens[:, None] == tokens[None]).double().mean().item()
    assert follow("mse", steps=40) == pytest.approx(chance, abs=0.15)


# -- two processes --------------------------------------------------------------------------------------


class _Step(torch.nn.Module):
    """A training step as a module's forward: what DDP synchronises. The base is no part of it."""

    def __init__(self, trainer):
        super().__init__()
        self.controlnet = trainer.family.controlnet
        self._trainer = [trainer]

    def forward(self, batch, generator):
        return self._trainer[0].compute_losses(*batch, generator=generator)["total"]


def _train_on_rank(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    decoder = shaken(make_decoder(), std=0.3)
    trainer = make_trainer(decoder, make_controlnet(decoder), control_dropout=0.5, anchor_weight=1.0)
    step = torch.nn.parallel.DistributedDataParallel(_Step(trainer))
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2)
    generator = seeded(rank)
    for _ in range(3):
        tokens = torch.randint(12, (3, *GRID), generator=generator)
        seg = torch.randint(3, (3, *VOXELS), generator=generator).to(torch.uint8)
        condition = MaskGiTCondition(label=torch.zeros(3, dtype=torch.int64))
        step((tokens, condition, ControlCondition(seg)), generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(trainer.family.controlnet.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_different_data_keep_equal_weights(tmp_path):
    codes, logs = run_ranks(_train_on_rank, tmp_path)
    assert codes == [0, 0], "\n".join(logs)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["head.weight"].any(), "and they were trained"
