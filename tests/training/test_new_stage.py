"""A new stage is a record, a section of the configuration and a recipe; this one removes noise from volumes."""

from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from prod9 import stages
from prod9.config import schema
from prod9.config.load import config_from_dict
from prod9.config.sections import Count, RunSection, Section
from prod9.models.checkpoint_file import read_checkpoint
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.training.batches import VolumeBatch
from prod9.training.data.brats import BraTSDataModule
from prod9.training.lightning.stage import StageLightning
from prod9.training.recipes.base import AbstractRecipe, Draws, Encoding, Panel, Samples, as_array
from prod9.training.recipes.table import RECIPES
from prod9.training.run import build_module, train
from tests.fixtures import write_brats_tree
from tests.training.tiny import QUIET


class DenoiserModelConfig(Section):
    kernel_size: Count = Field(default=3, description="Voxels along each axis.")


class DenoiserConfig(RunSection):
    stage: Literal["denoiser"] = Field(default="denoiser", description="Stage.")
    model: DenoiserModelConfig = Field(default=DenoiserModelConfig(), description="Network.")


class DenoiserTrainer:
    """The algorithm: predict a volume from itself and noise."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def error(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = x.as_subclass(torch.Tensor)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return (self.network(x + 0.1 * noise) - x).square().flatten(1).mean(1)

    def summarise(self, tally: Tally) -> Losses:
        return tally.averages()


class DenoiserRecipe(AbstractRecipe[DenoiserConfig, None, VolumeBatch]):
    """Stage ``denoiser``."""

    metrics = ("loss",)
    convolutional = True

    def __init__(self, config: DenoiserConfig, bases: None = None) -> None:
        super().__init__(config, bases)
        self.network = nn.Conv3d(1, 1, config.model.kernel_size, padding="same")
        self.algorithm = DenoiserTrainer(self.network)

    @staticmethod
    def load_bases(config: Any, opened: Any = None) -> None:
        """A stage 1 has none."""

    @classmethod
    def data_module(cls, config: Any, bases: None, encoding: Encoding) -> BraTSDataModule:
        return BraTSDataModule(config)

    def networks(self) -> dict[str, nn.Module]:
        return {"denoiser": self.network}

    def architecture(self) -> dict[str, Any]:
        return {"denoiser": self.config.model.model_dump(mode="json")}

    def losses(self, batch: VolumeBatch, *, step: int, generator: torch.Generator) -> Losses:
        return {"total": self.algorithm.error(batch["image"], generator).mean()}

    def tally(self, batch: VolumeBatch, index: int, draws: Draws) -> Tally:
        self.keep_example(batch)
        return Tally({"loss": mean_of(self.algorithm.error(batch["image"], draws.for_batch(index)))})

    @torch.no_grad()
    def samples(self, count: int, draws: Draws) -> Samples:
        return Samples([[Panel("denoised", as_array(self.network(b["image"])))] for b in self.examples])


@pytest.fixture
def new_stage(monkeypatch):
    record = stages.Stage(
        name="denoiser", family="maisi", number=1, command="train", title="Denoiser", weights="denoiser"
    )
    for table, entry in (
        (stages.STAGES, record),
        (schema.CONFIGS, DenoiserConfig),
        (RECIPES, DenoiserRecipe),
    ):
        monkeypatch.setitem(table, "denoiser", entry)


def test_a_new_stage_trains_from_its_configuration_to_a_checkpoint(new_stage, tmp_path):
    write_brats_tree(tmp_path / "cohort", 5)
    data = {
        "root": str(tmp_path / "cohort"),
        "grid": [16, 16, 16],
        "spacing": [4.0, 4.0, 4.0],
        "batch_size": 2,
    }
    values = {"stage": "denoiser", "output_dir": str(tmp_path / "run"), "data": data, "trainer": QUIET}
    training = {"max_steps": 3, "validate_every_steps": 3, "learning_rate": 1e-2}
    config = config_from_dict(values | {"training": training, "callbacks": {"num_samples": 1}}, source="test")
    assert type(build_module(config)) is StageLightning
    result = train(config)
    assert result.step == 3
    assert 0 < result.metrics["val/loss"] < 1
    assert result.headline == f"held-out loss {result.metrics['val/loss']:.3f}"
    content, _ = read_checkpoint(result.checkpoint)
    assert content["prod9"]["stage"] == "denoiser"
    assert content["prod9"]["architecture"] == {"denoiser": {"kernel_size": 3}}
    assert {"denoiser.weight", "denoiser.bias"} <= content["state_dict"].keys()
    assert list((tmp_path / "run" / "samples").glob("*.png"))
