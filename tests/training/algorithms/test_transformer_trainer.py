"""TransformerTrainer: what enters the loss, and that it teaches."""

import math

import pytest
import torch

from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.transformer import TransformerDecoder
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from tests.draws import repeated, seeded, shaken
from tests.processes import run_ranks

GRID = (2, 2, 4)
SETTINGS = {"label_smoothing": 0.0, "condition_dropout": 0.0, "background_weight": 1.0, "ordinal_weight": 0.0}


def make_trainer(decoder=None, **kwargs):
    decoder = decoder or TransformerDecoder(
        levels=(4, 3), embed_dim=24, num_blocks=2, num_heads=2, num_classes=3, groups="per_level"
    )
    scheduler = MaskGiTScheduler(scheduler_type="arccos")
    return TransformerTrainer(decoder=decoder, scheduler=scheduler, **(SETTINGS | kwargs))


def make_batch(batch=6):
    tokens = torch.randint(12, (batch, *GRID), generator=seeded(0))
    return tokens, MaskGiTCondition(label=torch.arange(batch) % 3)


def shaken_decoder(**kwargs):
    settings = {"levels": (4, 3), "embed_dim": 24, "num_blocks": 2, "num_heads": 2, "num_classes": 3}
    return shaken(TransformerDecoder(**settings, **kwargs), std=0.3).eval()


def test_a_new_decoder_starts_at_the_entropy_of_uniform_tokens():
    losses = make_trainer(label_smoothing=0.1).compute_losses(*make_batch(), generator=seeded())
    assert losses["total"].item() == pytest.approx(math.log(12), abs=1e-4)


@pytest.mark.parametrize("groups", ["dense", "balanced", "per_level"])
def test_loss_is_the_mean_over_hidden_tokens(groups):
    tokens, condition = make_batch()
    trainer = make_trainer(shaken_decoder(groups=groups))
    losses = trainer.compute_losses(tokens, condition, generator=seeded(3))
    sample = trainer.generate_training_data(tokens, generator=seeded(3))
    dense = trainer.decoder(sample.tokens, sample.mask, trainer.decoder.prepare(condition)).dense()
    picked = dense.gather(1, tokens[:, None])[:, 0][sample.mask]
    assert losses["cross_entropy"].item() == pytest.approx(-picked.mean().item(), abs=1e-4)
    assert losses["total"] is losses["cross_entropy"]


def test_background_weighs_less_and_alone_weighs_nothing():
    tokens, condition = make_batch()
    decoder = shaken_decoder()
    inside = torch.rand(tokens.shape, generator=seeded(1)) < 0.5
    sample = make_trainer(decoder).generate_training_data(tokens, generator=seeded())
    dense = decoder(sample.tokens, sample.mask, decoder.prepare(condition)).dense()
    picked = -dense.gather(1, tokens[:, None])[:, 0]

    def loss(weight, foreground):
        trainer = make_trainer(decoder, background_weight=weight)
        return trainer.compute_losses(tokens, condition, generator=seeded(), foreground=foreground)[
            "total"
        ].item()

    weights = torch.where(inside, 1.0, 0.25)[sample.mask]
    expected = (picked[sample.mask] * weights).sum() / weights.sum()
    assert loss(0.25, inside) == pytest.approx(expected.item(), abs=1e-4)
    assert loss(0.0, inside) == pytest.approx(picked[sample.mask & inside].mean().item(), abs=1e-4)
    assert loss(0.0, torch.zeros_like(inside)) == 0.0


@pytest.mark.parametrize("margin", [0, 1])
def test_tokens_in_and_about_a_segmented_class_weigh_more(margin):
    tokens, condition = make_batch()
    decoder = shaken_decoder()
    inside = torch.rand(tokens.shape, generator=seeded(1)) < 0.5
    seg = torch.zeros(len(tokens), *(2 * side for side in GRID), dtype=torch.uint8)
    seg[:, 0, 3, 5] = 2  # one voxel, in the patch of position (0, 1, 2)
    where = torch.zeros_like(inside)
    where[:, 0, 1, 2] = True
    if margin:
        where[:, :, :, 1:4] = True
    trainer = make_trainer(decoder, background_weight=0.25, region_weight=7.0, region_margin=margin)
    sample = trainer.generate_training_data(tokens, generator=seeded())
    dense = decoder(sample.tokens, sample.mask, decoder.prepare(condition)).dense()
    picked = -dense.gather(1, tokens[:, None])[:, 0][sample.mask]
    weights = torch.where(inside, 1.0, 0.25).masked_fill(where, 7.0)[sample.mask]
    losses = trainer.compute_losses(tokens, condition, generator=seeded(), foreground=inside, seg=seg)
    assert (weights == 7.0).any()
    assert losses["total"].item() == pytest.approx((picked @ weights / weights.sum()).item(), abs=1e-4)


def test_ordinal_term_is_added_with_its_weight():
    tokens, condition = make_batch()
    decoder = shaken_decoder()
    losses = make_trainer(decoder, ordinal_weight=0.5).compute_losses(tokens, condition, generator=seeded())
    expected = losses["cross_entropy"] + 0.5 * losses["ordinal"]
    assert torch.allclose(losses["total"], expected)
    assert losses["ordinal"] > 0


def test_coupled_groups_are_trained_together_and_by_themselves():
    decoder = shaken_decoder(groups="per_level", coupling_channels=8)
    losses = make_trainer(decoder).compute_losses(*make_batch(), generator=torch.Generator().manual_seed(0))
    assert set(losses) == {"cross_entropy", "marginal", "total"}
    torch.testing.assert_close(losses["total"], losses["cross_entropy"] + losses["marginal"])
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.coupling.parameters())


def test_coupling_learns_digits_that_the_others_determine():
    decoder = TransformerDecoder(
        levels=[4, 4],
        embed_dim=24,
        num_blocks=2,
        num_heads=2,
        groups="per_level",
        coupling_channels=16,
        dropout=0.0,
    )
    trainer = make_trainer(decoder, condition_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in repeated(150):
        digit = torch.randint(4, (4, 4, 4, 4), generator=generator)
        condition = MaskGiTCondition(torch.zeros(4, dtype=torch.int64))
        losses = trainer.compute_losses(digit + 4 * (3 - digit), condition, generator=generator)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    # One digit in four is random, and the other follows from it: the coupled loss is half of the independent one.
    assert losses["cross_entropy"] < 0.6 * losses["marginal"]
    with torch.no_grad():
        decoder.eval()
        hidden = torch.ones(1, 4, 4, 4, dtype=torch.bool)
        logits = decoder(hidden.long(), hidden, decoder.prepare(MaskGiTCondition(torch.tensor([0]))))
        first, second = decoder.vocabulary.digits(logits.sample(generator)).unbind(-1)
    assert (first + second == 3).float().mean() > 0.95


def test_condition_dropout_of_one_is_unconditional_training():
    tokens, condition = make_batch()
    decoder = shaken_decoder()
    always = make_trainer(decoder, condition_dropout=1.0)
    other = MaskGiTCondition(label=condition.label.flip(0))
    one, two = (always.compute_losses(tokens, c, generator=seeded())["total"] for c in (condition, other))
    assert torch.equal(one, two)
    never = make_trainer(decoder)
    assert not torch.equal(
        *(never.compute_losses(tokens, c, generator=seeded())["total"] for c in (condition, other))
    )


def test_the_generator_alone_decides():
    tokens, condition = make_batch()
    trainer = make_trainer(shaken_decoder(), condition_dropout=0.5)
    one, two, three = (
        trainer.compute_losses(tokens, condition, generator=seeded(s))["total"] for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_metrics_are_scalars_and_confusion_counts_every_token():
    tokens, condition = make_batch()
    trainer = make_trainer(shaken_decoder())
    metrics = trainer.compute_metrics(tokens, condition, generator=seeded())
    assert all(value.ndim == 0 and torch.isfinite(value) for value in metrics.values())
    assert {
        "loss",
        "accuracy",
        "loss_low_mask",
        "loss_high_mask",
        "accuracy_level_1",
        "distance_level_0",
    } <= set(metrics)
    guess, target = torch.tensor([0, 5, 11]), torch.tensor([0, 6, 11])
    first, second = trainer.confusion_matrices(guess, target)
    assert first.shape == (4, 4)
    assert first[0, 0] == first[2, 1] == first[3, 3] == 1
    assert second.diagonal().tolist() == [1, 1, 1]


def test_a_tiny_decoder_learns_tokens_that_the_label_determines():
    torch.manual_seed(0)
    trainer = make_trainer(
        TransformerDecoder(levels=(4, 3), embed_dim=32, num_blocks=2, num_heads=2, num_classes=3),
        condition_dropout=0.1,
    )
    patterns = torch.randint(12, (3, *GRID), generator=seeded())
    optimizer = torch.optim.AdamW(trainer.decoder.parameters(), lr=3e-3)
    generator, labels = seeded(), torch.arange(9) % 3
    for _ in repeated(150):
        losses = trainer.compute_losses(patterns[labels], MaskGiTCondition(label=labels), generator=generator)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    trainer.decoder.eval()
    condition = MaskGiTCondition(label=torch.arange(3))
    assert trainer.compute_metrics(patterns, condition, generator=seeded())["accuracy"] > 0.99
    for order in ("confidence", "halton"):
        sampler = MaskGiTSampler(scheduler=trainer.scheduler, steps=4, order=order, temperature=0.5)
        drawn = sampler.sample(trainer.decoder, (3, *GRID), condition, seeded())
        assert (drawn == patterns).double().mean() > 0.95


class _Step(torch.nn.Module):
    """A training step as a module's forward: what DDP synchronises."""

    def __init__(self, trainer):
        super().__init__()
        self.decoder, self.trainer = trainer.decoder, trainer

    def forward(self, tokens, condition, generator):
        return self.trainer.compute_losses(tokens, condition, generator=generator)["total"]


def _train_on_rank(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    trainer = make_trainer(condition_dropout=0.5)
    step = torch.nn.parallel.DistributedDataParallel(_Step(trainer))
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2)
    generator = seeded(rank)
    for _ in range(3):
        tokens = torch.randint(12, (3, *GRID), generator=generator)
        step(tokens, MaskGiTCondition(label=torch.full((3,), rank)), generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(trainer.decoder.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_different_data_keep_equal_weights(tmp_path):
    codes, logs = run_ranks(_train_on_rank, tmp_path)
    assert codes == [0, 0], "\n".join(logs)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["head.weight"].any(), "and they were trained"
