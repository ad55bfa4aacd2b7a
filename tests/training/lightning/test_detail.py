"""Detail flows from data to a checkpoint that loads, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.factory import ModelFactory
from prod9.models.meta import count_parameters
from prod9.planning.estimates import OVERHEAD, estimate
from prod9.training import run
from prod9.training.data.detail import BraTSReconstructionDetailDataModule
from prod9.training.recipes.reconstructor import Reconstructor, load_reconstructor
from prod9.training.recipes.translator import load_refined_translator
from tests.fixtures import write_brats_tree
from tests.pipelines.test_refinement import write_refiner
from tests.training.tiny import write_autoencoder
from tests.training.tiny_detail import detail_config
from tests.training.tiny_refiner import Average, write_translator


class Blur:
    """Reconstructs by averaging neighbours."""

    split = Average().split
    settings = ("weights",)

    def __call__(self, scan: np.ndarray, *, seed: int) -> np.ndarray:
        """Return the mean of each voxel and its two neighbours."""
        return (scan + np.roll(scan, 1, 0) + np.roll(scan, -1, 0)) / 3


def test_a_run_on_reconstructions_ends_in_a_checkpoint_that_loads(tmp_path: Path) -> None:
    write_autoencoder(tmp_path / "stage1.ckpt")
    config = detail_config(tmp_path / "cohort", tmp_path / "stage1_detail")
    write_brats_tree(tmp_path / "cohort", 5)
    result = run.train(config)
    assert result.step == 3
    wanted = {"loss", "psnr_fitted", "psnr_fitted_1", "psnr_fitted_soft", "noise", "edges"}
    assert {f"val/{name}" for name in wanted} <= result.metrics.keys()
    loaded = CheckpointManager.load_detail(config.output_dir)
    assert loaded.header["inputs"]["autoencoder"]["sha256"] == (
        CheckpointManager.open(tmp_path / "stage1.ckpt").sha256
    )
    levels = loaded.header["data"]["noise"]
    assert list(levels) == ["T1", "T1ce", "T2", "FLAIR"]
    assert all(
        len(values) == 11 and values == sorted(values) and values[0] >= 0 for values in levels.values()
    )
    same = CheckpointManager.from_pretrained(Path(config.output_dir) / "checkpoints" / "last.ckpt")
    assert type(same.network) is type(loaded.network)
    with pytest.raises(CheckpointError, match="expected a checkpoint of stage refiner, got stage detail"):
        CheckpointManager.load_refiner(config.output_dir)
    assert list((Path(config.output_dir) / "samples").glob("*.png"))


def test_a_run_on_translations_knows_its_refiner(tmp_path: Path) -> None:
    write_translator(tmp_path)
    config = detail_config(tmp_path / "cohort", tmp_path / "stage2_detail", "translation_detail")
    translator = CheckpointManager.open(tmp_path / "stage2", stage="transformer")
    plain = load_refined_translator(config)
    assert plain.refiner is None
    write_refiner(tmp_path / "stage2_refiner" / "checkpoints" / "last.ckpt", translator=translator.sha256)
    refined = load_refined_translator(config)
    assert refined.refiner is not None
    assert refined.settings != plain.settings
    write_brats_tree(tmp_path / "cohort", 5)
    run.train(config)
    header = CheckpointManager.load_detail(config.output_dir).header
    assert header["data"]["refiner"] == refined.refiner.sha256
    assert header["inputs"]["transformer"]["sha256"] == translator.sha256
    other = tmp_path / "other" / "last.ckpt"
    write_refiner(other, translator="b" * 64)
    named = detail_config(
        tmp_path, tmp_path / "stage2_detail", "translation_detail",
        inputs={"refiner": str(other), "transformer": str(tmp_path / "stage2")},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="expected the transformer that"):
        load_refined_translator(named)


def test_samples_hold_the_soft_volume_the_scan_and_the_scan_without_noise(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 5)
    config = detail_config(tmp_path / "cohort", tmp_path / "run", reconstructions={"per_scan": 2})
    data = BraTSReconstructionDetailDataModule(config, reconstructor=Blur())
    data.setup("fit")
    dataset = data._dataset("train")
    assert len(dataset) == 3 * 4 * 2  # type: ignore[arg-type]
    sample = dataset[0]
    np.testing.assert_allclose(
        sample["decoded"][0], Blur()(sample["target"][0].numpy(), seed=0), atol=1 / 250
    )
    assert sample["clean"].shape == sample["target"].shape
    assert not sample["present"].any()
    assert data.noise_levels().keys() == {"T1", "T1ce", "T2", "FLAIR"}


def test_noise_in_the_latent_changes_a_reconstruction(tmp_path: Path) -> None:
    write_autoencoder(tmp_path / "stage1.ckpt")
    scan = np.random.default_rng(0).random((16, 18, 16), dtype=np.float32)
    made = {}
    for noise in (0.0, 0.5):
        config = detail_config(tmp_path, tmp_path / "run", reconstructions={"latent_noise": noise})
        reconstructor = load_reconstructor(config)
        made[noise] = reconstructor(scan, seed=3)
        np.testing.assert_array_equal(made[noise], reconstructor(scan, seed=3))
        assert made[noise].shape == scan.shape
    assert not np.array_equal(made[0.0], made[0.5])
    assert isinstance(reconstructor, Reconstructor)


def test_bases_have_to_be_named_and_to_fit(tmp_path: Path) -> None:
    unnamed = detail_config(tmp_path, tmp_path / "run", inputs={"autoencoder": None})
    with pytest.raises(ConfigError, match=r"inputs.autoencoder: expected the run folder"):
        load_reconstructor(unnamed)
    write_translator(tmp_path)
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of stage autoencoder, got stage transformer"
    ):
        load_reconstructor(
            detail_config(tmp_path, tmp_path / "run", inputs={"autoencoder": str(tmp_path / "stage2")})
        )
    with pytest.raises(ConfigError, match=r"model.num_classes: expected 4"):
        detail_config(tmp_path, tmp_path / "run", model={"num_classes": 3})
    with pytest.raises(ConfigError, match=r"steps: expected at most max_steps \(4\), got 9"):
        detail_config(tmp_path, tmp_path / "run", sampler={"steps": 9})
    with pytest.raises(ConfigError, match=r"model.kind"):
        detail_config(tmp_path, tmp_path / "run", "translation_detail", model={"kind": "detail"})


@pytest.mark.parametrize("stage", ["detail", "translation_detail"])
@pytest.mark.parametrize("model", [{}, {"num_res_blocks": 2, "num_channels": [8, 16, 24]}])
def test_the_estimate_counts_every_parameter(stage: str, model: Any, tmp_path: Path) -> None:
    config = detail_config(tmp_path, tmp_path / "run", stage, model=model)
    network = ModelFactory.create_detail(config.model)
    need = estimate(config, count=count_parameters, device="cpu")
    assert need.parameters == sum(p.numel() for p in network.parameters())
    assert need.memory_bytes > OVERHEAD * 16 * need.parameters
