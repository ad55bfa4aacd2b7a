"""The adapter of stage 3: what is trained, what is stored, and what a validation says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_file import read_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training import run
from prod9.training.lightning.controlnet_maskgit_lightning import ControlNetLightningMaskGiT
from prod9.training.recipes.control import TokenControlRecipe
from prod9.training.recipes.control_samples import centred
from prod9.training.run import train, validate
from tests.training.tiny import MemoryData, write_autoencoder
from tests.training.tiny_control import write_transformer


def batches(config, count=2):
    loader = iter(MemoryData(config).val_dataloader())
    return [next(loader) for _ in range(count)]


def test_base_and_autoencoder_are_neither_trained_nor_stored_nor_averaged(make_config, memory_data):
    config = make_config("maskgit_controlnet", "run")
    module = run.build_module(config)
    assert type(module) is ControlNetLightningMaskGiT
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"controlnet"}
    assert not module.recipe.base.training
    assert module.controlnet.training
    before = {name: value.clone() for name, value in module.recipe.base.state_dict().items()}

    result = train(config)
    content, _ = read_checkpoint(result.checkpoint)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"controlnet"}
    loaded = CheckpointManager.load_controlnet(config.output_dir)
    base = CheckpointManager.load_base(loaded)
    assert all(torch.equal(before[name], value) for name, value in base.network.state_dict().items())
    assert set(loaded.header["inputs"]) == {"transformer", "autoencoder"}
    assert loaded.network.head.weight.any(), "and it was trained"
    assert not loaded.network.training


@pytest.mark.parametrize("condition_type", ["mask", "label", "both"])
def test_the_condition_type_decides_what_is_told(make_config, condition_type):
    config = make_config("maskgit_controlnet", "run", condition={"condition_type": condition_type})
    module = run.build_module(config)
    batch = batches(config, 1)[0] | {"has_seg": torch.tensor([False])}
    told = module.recipe.control(batch)
    assert (told.seg is None) == (condition_type == "label")
    assert (told.label is None) == (condition_type == "mask")
    assert bool(told.is_dropped) == (condition_type != "label"), "nothing is known without a segmentation"


def test_a_validation_samples_with_and_without_control(make_config, memory_data):
    result = train(make_config("maskgit_controlnet", "run", callbacks={"num_samples": 2}))
    named = {
        "loss", "loss_base", "accuracy", "accuracy_base", "loss_region", "fid", "fid_base",
        "region_contrast", "region_contrast_base",
    }  # fmt: skip
    assert {f"val/{name}" for name in named} <= set(result.metrics)
    assert not {"val/inception_score", "val/classifier_accuracy"} & set(result.metrics)
    pictures = list((result.checkpoint.parents[1] / "samples").glob("*.png"))
    assert len(pictures) == 2
    again = validate(result_config(result), result.checkpoint)
    assert again["val/fid"] > 0


def result_config(result):
    from prod9.config.load import load_config

    return load_config(result.checkpoint.parents[1] / "config.yaml")


def test_an_untrained_control_network_samples_what_the_base_samples(make_config):
    config = make_config("maskgit_controlnet", "run")
    module = run.build_module(config).eval()
    (batch,) = batches(config, 1)
    module.recipe.sample_for(batch, 0, module.draws)
    (sampled,) = module.recipe.sampled.samples
    assert torch.equal(sampled.controlled, sampled.base)
    assert sampled.seg.shape == (1, 16, 16, 16)
    assert sampled.real.shape == (1, 1, 16, 16, 16)


def test_the_classifier_is_trained_only_when_asked_for(make_config, memory_data, monkeypatch):
    monkeypatch.setattr(MemoryData, "build_dataset", lambda self, part: Items(self), raising=False)
    result = train(
        make_config(
            "maskgit_controlnet", "run", training={"max_steps": 2}, validation={"classifier_steps": 2}
        )
    )
    assert 1.0 < result.metrics["val/inception_score"] < 4.0
    right = 2 * result.metrics["val/classifier_accuracy"]
    assert right == round(right), "of two volumes"


class Items:
    """A training set as the classifier reads it: by index, labels as tensors."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 4

    def __getitem__(self, index):
        item = self.data[index]
        return item | {"label": torch.tensor(item["label"])}


def test_another_base_than_before_is_refused(make_config, memory_data, tmp_path):
    config = make_config("maskgit_controlnet", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    train(config)
    write_transformer(tmp_path / "transformer.ckpt", tmp_path / "upstream.ckpt", seed=5)
    with pytest.raises(CheckpointError, match=r"inputs\.transformer.*tokens mean something else"):
        validate(config)
    with pytest.raises(CheckpointError, match="expected the transformer"):
        CheckpointManager.load_base(CheckpointManager.load_controlnet(config.output_dir))


def test_another_autoencoder_under_the_base_is_refused(make_config, memory_data, tmp_path):
    config = make_config("maskgit_controlnet", "run")
    write_autoencoder(tmp_path / "upstream.ckpt", seed=9)
    with pytest.raises(CheckpointError, match="expected the autoencoder"):
        run.build_module(config)


def test_a_base_has_to_be_named(make_config):
    config = make_config("maskgit_controlnet", "run", inputs={"transformer": None})
    with pytest.raises(ConfigError, match=r"inputs\.transformer"):
        run.build_module(config)


def test_pictures_are_centred_on_the_lesion():
    volume = torch.arange(5 * 6 * 7, dtype=torch.float32).view(5, 6, 7)
    seg = torch.zeros(5, 6, 7, dtype=torch.uint8)
    seg[1, 5, 2] = 3
    moved = centred(volume, seg)
    assert moved[2, 3, 3] == volume[1, 5, 2]
    assert moved[0].max() == 0, "what came from beyond is empty"
    np.testing.assert_array_equal(centred(volume, torch.zeros_like(seg)), volume.numpy())


def test_samples_of_a_config_are_the_bases_own(make_config):
    config = make_config("maskgit_controlnet", "run", data={"batch_size": 3, "root": "elsewhere"}, seed=7)
    inner = TokenControlRecipe.load_bases(config).base_config(config)
    assert inner.stage == "transformer"
    assert (inner.data, inner.seed, inner.output_dir) == (config.data, 7, str(Path(config.output_dir)))
    assert inner.model.kind == "label_conditional"
