"""RefinerLightning and its Translator: a run from data to a checkpoint that loads, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prod9.config.load import config_from_dict
from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.factory import ModelFactory
from prod9.models.meta import count_parameters
from prod9.planning.estimates import OVERHEAD, estimate
from prod9.training import run
from prod9.training.data.refiner import BraTSRefinerDataModule
from prod9.training.lightning.refiner_lightning import RefinerLightning
from prod9.training.recipes.refiner import inputs_of
from prod9.training.recipes.translator import load_translator
from tests.fixtures import write_brats_tree
from tests.training.tiny_refiner import Average, refiner_config, write_translator


@pytest.fixture
def config(tmp_path: Path) -> Any:
    write_translator(tmp_path)
    return refiner_config(tmp_path / "cohort", tmp_path / "refiner")


def test_a_run_ends_in_a_checkpoint_that_loads_as_a_refiner_and_as_nothing_else(config: Any) -> None:
    write_brats_tree(Path(config.data.root), 5)
    result = run.train(config)
    assert result.step == 3
    wanted = {"psnr", "psnr_fitted", "ssim", "psnr_fitted_decoded", "psnr_fitted_sources"}
    assert {f"val/{name}" for name in wanted} <= result.metrics.keys()
    loaded = CheckpointManager.load_refiner(config.output_dir)
    assert not loaded.network.training
    translator = CheckpointManager.open(config.inputs.transformer, stage="transformer")
    assert loaded.header["inputs"]["transformer"]["sha256"] == translator.sha256
    assert type(
        CheckpointManager.from_pretrained(Path(config.output_dir) / "checkpoints" / "last.ckpt").network
    ) is (type(loaded.network))
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of stage transformer, got stage refiner"
    ):
        CheckpointManager.load_transformer(config.output_dir)
    assert "test/psnr_fitted" in run.test(config)
    assert (Path(config.output_dir) / "samples").is_dir()


def test_the_picture_shows_sources_and_each_step_towards_the_scan(config: Any, tmp_path: Path) -> None:
    write_brats_tree(Path(config.data.root), 5)
    module = run.build_module(config)
    assert isinstance(module, RefinerLightning)
    data = BraTSRefinerDataModule(config, translator=Average())
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    module.recipe.examples = [batch]
    ((*sources, decoded, refined, scan, expected),) = module.sample_validation(3)
    assert len(sources) == int(batch["present"].sum())
    assert [panel.title.split(", ")[1] for panel in (decoded, refined, scan, expected)] == [
        "decoded",
        "refined",
        "scan",
        "expected error x 3",
    ]
    assert torch.equal(torch.from_numpy(scan.data), batch["target"][0, 0])
    # Untrained, it changes nothing.
    assert (decoded.data == refined.data).all()
    assert inputs_of(batch).target_label.tolist() == batch["label"].tolist()


def test_a_translator_has_to_be_named_and_to_fit(config: Any, tmp_path: Path) -> None:
    unnamed = refiner_config(tmp_path, tmp_path / "refiner", inputs={"transformer": None})
    with pytest.raises(ConfigError, match=r"inputs.transformer: expected the run folder"):
        load_translator(unnamed)
    other = refiner_config(tmp_path, tmp_path / "refiner", data={"grid": [24, 16, 16]})
    with pytest.raises(ConfigError, match=r"data.grid: expected that of"):
        load_translator(other)
    write_translator(tmp_path, kind="label_conditional")
    with pytest.raises(ConfigError, match="which takes no source"):
        load_translator(config)


def test_what_a_translation_depends_on_is_named(config: Any, tmp_path: Path) -> None:
    translator = load_translator(config)
    assert translator.num_sources == range(1, 2)
    sampled = load_translator(
        refiner_config(tmp_path / "cohort", tmp_path / "refiner", translations={"decode": "sample"})
    )
    assert translator.settings != sampled.settings
    assert set(translator.settings[:3]) <= set(sampled.settings)
    write_translator(tmp_path, seed=1)
    assert load_translator(config).settings != translator.settings
    write_translator(tmp_path, kind="single_stream", patch_size=2)
    assert load_translator(config).num_sources == range(1, 4)


def test_labels_and_classes_have_to_agree() -> None:
    with pytest.raises(ConfigError, match=r"model.num_classes: expected 4, one more than the largest label"):
        config_from_dict(
            {"stage": "refiner", "output_dir": "x", "data": {"root": "x"}, "model": {"num_classes": 3}},
            source="x",
        )


@pytest.mark.parametrize("model", [{}, {"num_res_blocks": 2, "num_channels": [8, 16, 24]}])
def test_the_estimate_counts_every_parameter(model: Any, tmp_path: Path) -> None:
    config = refiner_config(tmp_path, tmp_path / "refiner", model=model)
    network = ModelFactory.create_refiner(config.model)
    need = estimate(config, count=count_parameters, device="cpu")
    assert need.parameters == sum(p.numel() for p in network.parameters())
    assert need.memory_bytes > OVERHEAD * 16 * need.parameters
