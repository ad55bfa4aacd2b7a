"""What is counted over a set is counted over the set: not over volumes, batches or ranks and then averaged."""

from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prod9.controlnet.condition import ControlCondition
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.refiner import Refined
from prod9.measures.metrics import CombinedMetric
from prod9.training import run
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer
from prod9.training.algorithms.control_flow import FlowControl
from prod9.training.algorithms.control_tokens import TokenControl
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.algorithms.refiner_trainer import RefinerInputs, RefinerTrainer
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from prod9.training.lightning.base import AbstractLightning
from prod9.training.losses import VAEGANLoss
from prod9.training.trainer import build_trainer, quiet
from prod9.types import AutoencoderOutput, MaskedSample
from tests import networks
from tests.networks import Inputs, examples, shaken
from tests.training.tiny import MemoryData, autoencoder_config, transformer_config, write_autoencoder
from tests.training.tiny_maisi import make as make_maisi

LOSS: dict[str, Any] = {
    "reconstruction": "l1", "reconstruction_weight": 1.0, "perceptual": None, "perceptual_weight": 0.0,
    "adversarial_weight": 0.0, "criterion": "hinge", "adaptive": False, "adaptive_max": 1.0, "start_step": 0,
}  # fmt: skip


class OwnTokens(nn.Module):
    """Volume k, whose first voxel is k / 8, has the tokens 64·k to 64·k + 63."""

    levels = (8, 8, 8)
    vocab_size = 512

    def __init__(self, *, continuous: bool = False) -> None:
        super().__init__()
        self.continuous = continuous

    @property
    def last_layer(self) -> Tensor:
        return torch.zeros(1)

    def forward(self, x: Tensor) -> AutoencoderOutput:
        latent = x[:, :, ::2, ::2, ::2]
        if self.continuous:
            return AutoencoderOutput(x * 0.9, latent, latent, torch.ones_like(latent))
        start = (x[:, 0, 0, 0, 0] * 8).round().long() * 64
        tokens = start[:, None] + torch.arange(64)
        return AutoencoderOutput(x * 0.9, latent, latent, None, tokens.view(-1, 4, 4, 4))


def eight_volumes() -> Tensor:
    x = torch.rand(8, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0, 0] = torch.arange(8) / 8
    return x


def trainer_of(*, continuous: bool = False) -> AutoencoderTrainer:
    return AutoencoderTrainer(
        autoencoder=OwnTokens(continuous=continuous),
        discriminator=None,
        loss=VAEGANLoss(**LOSS),
        combined=CombinedMetric(psnr=1.0, ssim=1.0, lpips=0.0),
    )


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert float(got[name]) == pytest.approx(float(want[name]), rel=1e-4, abs=1e-6), name


CUTS = st.lists(st.integers(1, 7), max_size=4, unique=True)


def parts(x: Tensor, cuts: list[int]) -> list[Tensor]:
    return [part for part in x.tensor_split(sorted(cuts)) if len(part)]


def test_a8_codebook_use_is_that_of_all_volumes():
    trainer = trainer_of()
    tally = reduce(add, [trainer.tally(x[None]) for x in eight_volumes()])
    scores = trainer.summarise(tally)
    assert float(scores["codebook_usage"]) == 1.0
    assert float(scores["perplexity"]) == pytest.approx(512)
    assert all(float(scores[f"level_usage_{i}"]) == pytest.approx(1.0) for i in range(3))


@given(cuts=CUTS, continuous=st.booleans())
def test_a8_batches_of_any_size_give_the_scores_of_the_whole(cuts, continuous):
    trainer, x = trainer_of(continuous=continuous), eight_volumes()
    whole = trainer.compute_metrics(x)
    assert_same(trainer.summarise(reduce(add, [trainer.tally(part) for part in parts(x, cuts)])), whole)
    if continuous:
        assert float(whole["latent_std"]) == pytest.approx(float(x[:, :, ::2, ::2, ::2].std()), rel=1e-5)


def test_a8_an_empty_volume_spoils_no_mean_and_a_broken_network_does():
    trainer, x = trainer_of(), eight_volumes()
    x[0] = 0.0
    scores = trainer.compute_metrics(x)
    others = torch.stack([trainer.compute_metrics(v[None])["psnr_brain"] for v in x[1:]])
    assert float(scores["psnr_brain"]) == pytest.approx(float(others.mean()), rel=1e-5)
    x[3] = float("nan")
    assert trainer.compute_metrics(x.clone())["psnr"].isnan()


class EvenHidden(MaskGiTScheduler):
    """Hides every token of an even number: as many as there are."""

    def corrupt(self, tokens: Tensor, generator: torch.Generator) -> MaskedSample:
        mask = tokens % 2 == 0
        return MaskedSample(tokens.masked_fill(mask, 0), mask, tokens)

    def corrupt_at(self, tokens: Tensor, r: Tensor, generator: torch.Generator) -> MaskedSample:
        return self.corrupt(tokens, generator)


@given(cuts=CUTS)
def test_a8_token_scores_count_hidden_tokens_not_batches(cuts):
    decoder = examples()["decoder"]().network.eval()
    trainer = TransformerTrainer(decoder=decoder, scheduler=EvenHidden())
    tokens = Inputs("cpu", batch=8).tokens
    tokens[0] = 7  # a volume of which one token is hidden
    tokens[0, 0, 0, 0] = 4
    generator = torch.Generator()

    def tally(which: Tensor) -> Tally:
        condition = MaskGiTCondition(label=which % 4)
        return trainer.tally(tokens[which], condition, generator=generator)

    every = torch.arange(8)
    whole = trainer.summarise(tally(every))
    assert_same(trainer.summarise(reduce(add, [tally(part) for part in parts(every, cuts)])), whole)
    assert {"loss", "accuracy", "accuracy_level_0", "distance_level_2", "loss_low_mask"} <= whole.keys()


@given(cuts=CUTS)
def test_a8_refiner_scores_are_those_of_brains(cuts):
    def refine(decoded: Tensor, *_: Tensor) -> Refined:
        return Refined(decoded, decoded * 0.1 + 0.01)

    trainer = RefinerTrainer(refiner=refine)
    target = eight_volumes()
    target[:, :, 2:] *= (torch.arange(8) / 8)[:, None, None, None, None]  # smaller and smaller brains
    target[0] = 0.0
    nothing = torch.zeros(8, 1, 8, 8, 8)

    def tally(which: Tensor) -> Tally:
        given_ = RefinerInputs(
            (target * 0.8 + 0.1)[which],
            nothing[which],
            torch.ones(len(which), 1, dtype=torch.bool),
            which * 0,
        )
        return trainer.tally(given_, target[which])

    every = torch.arange(8)
    whole = trainer.summarise(tally(every))
    assert all(value.isfinite() for value in whole.values())
    assert_same(trainer.summarise(reduce(add, [tally(part) for part in parts(every, cuts)])), whole)


def control_trainer(family: str) -> ControlNetTrainer:
    if family == "tokens":
        base: Any = networks._decoder("cpu").eval()
        controlnet: Any = networks._token_controlnet(base, "cpu").eval()
        return ControlNetTrainer(
            family=TokenControl(decoder=base, controlnet=controlnet, scheduler=MaskGiTScheduler())
        )
    base, controlnet = networks._unet("cpu").eval(), networks._flow_controlnet("cpu").eval()
    scheduler = RectifiedFlowSchedulerRF()
    return ControlNetTrainer(family=FlowControl(base=base, controlnet=controlnet, scheduler=scheduler))


@pytest.mark.parametrize("family", ["tokens", "flow"])
def test_a8_region_scores_take_every_batch_that_has_one(family):
    trainer = control_trainer(family)

    def tally(k: int) -> Tally:
        one = Inputs("cpu", batch=1)
        seg = one.seg * (k != 1)  # the second sample has none
        target, condition = (
            (one.tokens, one.label_condition) if family == "tokens" else (one.latent, one.flow)
        )
        control = ControlCondition(seg=seg, label=one.labels)
        return trainer.tally(target, condition, control, generator=torch.Generator().manual_seed(k))

    tallies = [tally(k) for k in range(3)]
    assert "loss_region" not in trainer.summarise(tallies[1])
    scores = trainer.summarise(reduce(add, tallies))
    sums = torch.stack([t.means["loss_region"] for t in tallies]).sum(0)
    assert float(scores["loss_region"]) == pytest.approx(float(sums[0] / sums[1]))


def test_a8_weights_decide_what_counts():
    values = torch.tensor([1.0, float("nan"), 4.0])
    total, weight = mean_of(values, torch.tensor([1.0, 0.0, 2.0]))
    assert (float(total), float(weight)) == (9.0, 3.0)
    assert mean_of(values)[0].isnan()
    assert Tally({"nothing": mean_of(values, torch.zeros(3))}).averages() == {}


# -- through the adapters -------------------------------------------------------------------------------


class Volumes(LightningDataModule):
    """Held-out items of `MemoryData`, in batches of different sizes."""

    def __init__(self, config: Any, batches: list[list[int]]) -> None:
        super().__init__()
        self.items, self.batches = MemoryData(config), batches
        self.latent_std = 1.0
        self.split, self.reference_affine = self.items.split, self.items.reference_affine

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.items, batch_sampler=self.batches)

    test_dataloader = val_dataloader

    def noise_levels(self) -> dict[str, list[float]]:
        return {}


def validated(config: Any, batches: list[list[int]], what: str = "validate") -> dict[str, float]:
    torch.manual_seed(0)
    module = run.build_module(config)
    shaken(module.networks()[next(iter(module.networks()))], "cpu")
    module.recipe.scale_factor = 1.0
    trainer = build_trainer(config, "cpu", [], [])
    with quiet():
        (metrics,) = getattr(trainer, what)(module, datamodule=Volumes(config, batches), verbose=False)
    return {name: value for name, value in metrics.items() if "/" in name}


@pytest.mark.parametrize("what", ["validate", "test"])
def test_a8_an_autoencoders_run_logs_the_scores_of_the_set(tmp_path, what):
    config = autoencoder_config(tmp_path / "data", tmp_path / "run", trainer={"loggers": []})
    single = validated(config, [[100], [101], [102]], what)
    joint = validated(config, [[100, 101, 102]], what)
    uneven = validated(config, [[100, 101], [102]], what)
    prefix = {"validate": "val", "test": "test"}[what]
    assert f"{prefix}/codebook_usage" in joint
    for found in (single, uneven):
        assert found == pytest.approx(joint, rel=1e-4)


def test_a8_a_variational_autoencoders_run_too(tmp_path):
    config = make_maisi("maisi_vae", tmp_path, "run", trainer={"loggers": []})
    joint = validated(config, [[100, 101, 102]])
    assert {"val/latent_std", "val/kl"} <= joint.keys()
    assert validated(config, [[100, 101], [102]]) == pytest.approx(joint, rel=1e-4)


def test_a8_a_validation_that_broke_off_leaves_nothing_behind(tmp_path):
    write_autoencoder(tmp_path / "upstream.ckpt")
    config = transformer_config(tmp_path, tmp_path / "run", tmp_path / "upstream.ckpt")
    module = run.build_module(config)
    module._tally = Tally({"loss": torch.tensor([1e9, 1.0])})
    data = Volumes(config, [[100], [101]])
    trainer = build_trainer(config, "cpu", [], [])
    with quiet():
        (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    assert metrics["val/loss"] < 10
    assert module._tally == Tally()


def test_a8_ranks_add_up(tmp_path, monkeypatch):
    """The other rank has seen other volumes: its tally, which the exchange brings, counts as much."""
    config = autoencoder_config(tmp_path / "data", tmp_path / "run", trainer={"loggers": []})
    mine, other = [[100], [101]], [[102]]
    whole = validated(config, [*mine, *other])
    tallies: list[Tally] = []
    log_tally = AbstractLightning._log_tally

    def keep(self: AbstractLightning, part: str) -> None:
        tallies.append(self._tally)
        log_tally(self, part)

    monkeypatch.setattr(AbstractLightning, "_log_tally", keep)
    validated(config, other)

    def gather(parts: list[Any], own: Tally) -> None:
        parts[:] = [own, tallies[0]]

    monkeypatch.setattr(dist, "all_gather_object", gather)

    def two_ranks(self: AbstractLightning, part: str) -> None:
        monkeypatch.setattr(type(self.trainer), "world_size", property(lambda _: 2))
        log_tally(self, part)
        monkeypatch.undo()

    monkeypatch.setattr(AbstractLightning, "_log_tally", two_ranks)
    assert validated(config, mine) == pytest.approx(whole, rel=1e-4)


def test_a8_pictures_and_files_of_a_run_are_where_they_were(tmp_path: Path, monkeypatch):
    config = autoencoder_config(
        tmp_path / "data", tmp_path / "run", training={"max_steps": 2, "validate_every_steps": 2, "ema": None}
    )
    monkeypatch.setattr(run, "build_data_module", lambda config, *_, **__: MemoryData(config))
    metrics = run.train(config).metrics
    assert {"val/codebook_usage", "val/psnr_brain", "val/combined_metric"} <= metrics.keys()
