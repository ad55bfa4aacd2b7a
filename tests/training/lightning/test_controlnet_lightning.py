"""The adapter of MAISI's stage 3: what it starts from, what is stored, and what a validation says."""

import numpy as np
import pytest
import torch

from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_file import read_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.maisi_control import MAISIControlPipeline
from prod9.pipelines.segmentation import PlacedSegmentation
from prod9.training import run
from prod9.training.lightning.controlnet_lightning import ControlNetLightning
from prod9.training.run import train, validate
from tests.training.tiny import MemoryData
from tests.training.tiny_maisi import write_flow


def test_it_trains_from_the_base_stores_itself_alone_and_generates(make_config, memory_data, caplog):
    config = make_config("maisi_controlnet", "run")
    module = run.build_module(config)
    assert type(module) is ControlNetLightning
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"controlnet"}
    assert not module.recipe.base.training
    before = {name: value.clone() for name, value in module.recipe.base.state_dict().items()}
    conv_in = module.recipe.base.conv_in.conv.weight
    assert torch.equal(module.controlnet.conv_in.conv.weight, conv_in)

    with caplog.at_level("INFO", logger="prod9"):
        result = train(config)
    assert "tensors copied from the diffusion network" in caplog.text
    named = {"loss", "loss_base", "loss_region", "fid", "fid_base", "region_contrast", "region_contrast_base"}
    assert {f"val/{name}" for name in named} <= set(result.metrics)
    assert len(list((result.checkpoint.parents[1] / "samples").glob("*.png"))) == 2
    content, _ = read_checkpoint(result.checkpoint)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"controlnet"}
    loaded = CheckpointManager.load_flow_controlnet(config.output_dir)
    assert set(loaded.header["inputs"]) == {"diffusion", "autoencoder"}
    assert loaded.header["data"]["scale_factor"] == 0.5  # the base's
    assert loaded.network.controlnet_mid_block.conv.weight.any(), "and it was trained"
    base = CheckpointManager.load_flow(loaded)
    assert all(torch.equal(before[name], value) for name, value in base.network.state_dict().items())
    assert validate(config, result.checkpoint)["val/fid"] > 0

    pipeline = MAISIControlPipeline.from_checkpoint(config.output_dir)
    seg = np.zeros((16, 16, 16), dtype=np.uint8)
    seg[4:8, 4:8, 4:8] = 3
    placed = PlacedSegmentation(seg, np.diag([4.0, 4.0, 4.0, 1.0]), "case", 0.0)
    one, two = pipeline.generate("T2", seg=placed, num_samples=2, seed=3, batch_size=2)
    (again,) = pipeline.generate("T2", seg=placed, num_samples=1, seed=3, start=1)
    np.testing.assert_allclose(again.data, two.data, atol=1e-5)
    assert one.data.shape == (16, 16, 16)
    off = MAISIControlPipeline.from_checkpoint(config.output_dir, overrides=["control.control_strength=0"])
    (plain,) = off.generator.generate("T2", num_samples=1, seed=3)
    (same,) = off.generate("T2", seg=placed, num_samples=1, seed=3)
    np.testing.assert_array_equal(same.data, plain.data)
    assert not np.array_equal(same.data, one.data)
    with pytest.raises(ConfigError, match="expected a segmentation for control of condition_type 'mask'"):
        pipeline.generate("T2", seg=None, num_samples=1)
    with pytest.raises(ConfigError, match="expected one of T1, T1ce, T2, FLAIR, got 'PD'"):
        pipeline.generate("PD", seg=placed, num_samples=1)


@pytest.mark.parametrize(
    ("conditions", "sources"),
    [(["mask"], []), (["image"], ["T1", "T2"]), (["label"], []), (["mask", "image", "label"], ["T1", "T2"])],
    ids=["mask", "image", "label", "all"],
)
def test_the_conditions_decide_what_is_told(make_config, conditions, sources):
    told = {"conditions": conditions, "source_modalities": sources}
    module = run.build_module(make_config("maisi_controlnet", "run", condition=told))
    batch = next(iter(MemoryData(module.config).val_dataloader())) | {"has_seg": torch.tensor([False])}
    control = module.recipe.control(batch)
    assert (control.seg is None) == ("mask" not in conditions)
    assert (control.label is None) == ("label" not in conditions)
    assert (control.images is None) == ("image" not in conditions)
    assert bool(control.is_dropped) == ("mask" in conditions), "nothing is known without a segmentation"
    module.eval().recipe.sample_for(batch, 0, module.draws)
    (sampled,) = module.recipe.sampled.samples
    torch.testing.assert_close(sampled.controlled, sampled.base, rtol=0, atol=1e-4)


def test_exports_of_all_stages_find_each_other_where_they_are_moved(make_config, memory_data, tmp_path):
    config = make_config("maisi_controlnet", "run", training={"max_steps": 1}, callbacks={"num_samples": 0})
    train(config)
    share = tmp_path / "share"
    vae = CheckpointManager.export(tmp_path / "vae.ckpt", share / "vae")
    flow = CheckpointManager.export(tmp_path / "flow.ckpt", share / "flow", autoencoder=vae)
    CheckpointManager.export(config.output_dir, share / "control", transformer=flow)
    share.rename(tmp_path / "moved")
    (tmp_path / "flow.ckpt").unlink()
    (tmp_path / "vae.ckpt").unlink()
    pipeline = MAISIControlPipeline.from_checkpoint(tmp_path / "moved" / "control")
    seg = np.zeros((1, 16, 16, 16), dtype=np.uint8)
    assert pipeline.sample_label(1, segs=seg, seeds=[0]).shape == (1, 2, 4, 4, 4)
    assert CheckpointManager.from_pretrained(tmp_path / "moved" / "control").header["step"] == 1


def test_the_contrast_is_part_of_the_loss(make_config, memory_data, logged, tmp_path):
    train(make_config("maisi_controlnet", "run", loss={"contrast": {"weight": 0.1}}))
    assert any(row.get("train/contrast") for row in logged(tmp_path / "run"))


def test_what_does_not_fit_is_refused(make_config, memory_data, tmp_path):
    with pytest.raises(ConfigError, match=r"inputs\.diffusion: expected the run folder"):
        run.build_module(make_config("maisi_controlnet", "run", inputs={"diffusion": None}))
    with pytest.raises(ConfigError, match="source_modalities: expected modalities if, and only if"):
        make_config("maisi_controlnet", "run", condition={"conditions": ["image"]})
    told = {"conditions": ["image"], "source_modalities": ["PD"]}
    with pytest.raises(ConfigError, match=r"expected some of data\.modalities"):
        make_config("maisi_controlnet", "run", condition=told)
    with pytest.raises(ConfigError, match=r"loss\.contrast: expected the condition mask"):
        make_config("maisi_controlnet", "run", condition={"conditions": ["label"]}, loss={"contrast": {}})
    config = make_config("maisi_controlnet", "run", training={"max_steps": 1}, callbacks={"num_samples": 0})
    train(config)
    write_flow(tmp_path / "flow.ckpt", tmp_path / "vae.ckpt", seed=5)
    with pytest.raises(CheckpointError, match=r"inputs\.diffusion.*expected the diffusion"):
        validate(config)
    with pytest.raises(CheckpointError, match="expected the diffusion that"):
        CheckpointManager.load_flow(CheckpointManager.load_flow_controlnet(config.output_dir))
