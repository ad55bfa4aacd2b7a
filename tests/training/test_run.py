"""A whole run: its files, schedules, validation without training, refusals."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from prod9.errors import ConfigError, MissingDependencyError, TrainingError
from prod9.models.checkpoint_file import read_checkpoint
from prod9.models.run_folder import write_index
from prod9.training import run
from prod9.training.run import train, validate
from tests.processes import run as run_process
from tests.training.tiny import MemoryData, transformer_config, write_autoencoder


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
def test_a_run_leaves_everything_that_is_promised(stage, make_config, memory_data, logged, run_json):
    config = make_config(stage, "run")
    result = train(config)
    folder = Path(config.output_dir)

    assert yaml.safe_load((folder / "config.yaml").read_text())["stage"] == stage
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == result.metrics
    (session,) = run_json(folder)
    assert session["outcome"] == "finished"
    assert session["peak_rss_gib"] > 0
    assert session["versions"].keys() >= {"prod9", "torch", "lightning", "monai", "python"}
    assert not (folder / ".lock").exists()

    rows = logged(folder)
    steps = {name: [int(row["step"]) for row in rows if row.get(name)] for name in rows[0]}
    assert steps["train/total"] == [2, 4, 6]
    assert steps[f"lr/{'autoencoder' if stage == 'autoencoder' else 'decoder'}"] == [2, 4, 6]
    monitor = {"autoencoder": "val/combined_metric", "transformer": "val/loss"}[stage]
    assert steps[monitor] == [4, 6]
    assert monitor in result.metrics
    header = read_checkpoint(result.checkpoint)[0]["prod9"]
    assert header["split"]["train"] == ["a", "b", "c", "d"]
    assert header["data"]["reference_affine"][0][0] == 4.0


def test_learning_rates_of_both_optimizers_follow_one_schedule_by_batch(make_config, memory_data, logged):
    config = make_config(
        "autoencoder",
        "run",
        training={
            "log_every_steps": 1,
            "lr_schedule": {"kind": "linear", "warmup_steps": 2, "final_fraction": 0.5},
        },
        callbacks={"num_samples": 0},
    )
    train(config)
    rows = [row for row in logged(Path(config.output_dir)) if row.get("lr/autoencoder")]
    expected = [0.5, 1.0, 1.0, 5 / 6, 4 / 6, 0.5]
    assert [float(row["lr/autoencoder"]) / 1e-3 for row in rows] == pytest.approx(expected)
    assert [float(row["lr/discriminator"]) / 1e-4 for row in rows] == pytest.approx(expected)


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
def test_validate_and_test_need_nothing_that_only_fit_sets_up(stage, make_config, memory_data):
    config = make_config(stage, "run", callbacks={"num_samples": 0})
    result = train(config)
    again = validate(config, result.checkpoint)
    monitor = {"autoencoder": "val/combined_metric", "transformer": "val/loss"}[stage]
    assert again[monitor] == pytest.approx(
        json.loads((result.checkpoint.parent / "best.json").read_text())[0]["value"], rel=1e-5
    )
    assert all(name.startswith("test/") for name in run.test(config))


def test_scores_of_patients_that_were_trained_on_come_with_a_warning(
    make_config, memory_data, monkeypatch, caplog
):
    from prod9.data.splits import Split
    from tests.training.tiny import MemoryData

    config = make_config("transformer", "run", callbacks={"num_samples": 0})
    train(config)
    validate(config)
    assert "trained on" not in caplog.text
    monkeypatch.setattr(
        MemoryData,
        "split",
        property(lambda _: Split(("e",), ("a", "b"), ("f",)), lambda *_: None),
        raising=False,
    )
    validate(config)
    assert "trained on 2 patients of the val split" in caplog.text


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
def test_frozen_metric_and_perceptual_networks_stay_out_of_the_checkpoint(stage, make_config, memory_data):
    config = make_config(stage, "run", callbacks={"num_samples": 0})
    content, _ = read_checkpoint(train(config).checkpoint)
    prefixes = {name.split(".")[0] for name in content["state_dict"]}
    assert prefixes == ({"autoencoder", "discriminator"} if stage == "autoencoder" else {"decoder"})
    assert "hyper_parameters" not in content


def test_stage_2_records_its_autoencoder(make_config, memory_data, tmp_path):
    from prod9.models.checkpoint_manager import CheckpointManager

    result = train(make_config("transformer", "run", callbacks={"num_samples": 0}))
    loaded = CheckpointManager.load_transformer(result.checkpoint)
    assert CheckpointManager.load_upstream(loaded).path == tmp_path / "upstream.ckpt"


def test_stage_2_without_an_autoencoder_says_what_to_set(make_config, memory_data):
    with pytest.raises(ConfigError, match=r"inputs\.autoencoder"):
        train(make_config("transformer", "run", inputs={"autoencoder": None}))


def test_a_step_with_nan_is_skipped_counted_and_named(make_config, memory_data, caplog, last_state, run_json):
    memory_data["bad_steps"] = {1, 3}
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    with caplog.at_level(logging.WARNING, logger="prod9"):
        train(config)
    assert "Step 1 skipped (1 so far)" in caplog.text
    assert "case" in caplog.text
    state = last_state(Path(config.output_dir))
    assert state["prod9_run"]["skipped_steps"] == 2
    assert all(v.isfinite().all() for v in state["state_dict"].values() if v.is_floating_point())
    assert run_json(Path(config.output_dir))[0]["skipped_steps"] == 2


def test_too_many_nan_steps_stop_the_run_naming_the_cases(make_config, memory_data):
    memory_data["bad_steps"] = {1, 2, 3}
    config = make_config(
        "autoencoder", "run", training={"max_skipped_steps": 2}, callbacks={"num_samples": 0}
    )
    with pytest.raises(TrainingError, match=r"2 steps without.*case\d"):
        train(config)


def test_weights_that_are_not_finite_are_never_saved(make_config, memory_data, monkeypatch):
    from prod9.training.lightning.base import AbstractLightning

    finish = AbstractLightning.training_step

    def poison(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        if self.step == 3:
            next(self.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(AbstractLightning, "training_step", poison)
    config = make_config("transformer", "run", callbacks={"checkpoint": {"every_steps": 1}, "num_samples": 0})
    with pytest.raises(TrainingError, match="nothing was saved"):
        train(config)
    content, _ = read_checkpoint(Path(config.output_dir) / "checkpoints" / "last.ckpt")
    assert content["prod9"]["step"] == 2


def test_gradients_are_clipped(make_config, memory_data, monkeypatch):
    from prod9.training.lightning.base import AbstractLightning

    norms: list[float] = []
    clip = AbstractLightning.clip_or_drop

    def note(self, optimizer, norm, finite):
        clip(self, optimizer, norm, finite)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    monkeypatch.setattr(AbstractLightning, "clip_or_drop", note)
    train(
        make_config("autoencoder", "run", training={"gradient_clip_norm": 1e-3}, callbacks={"num_samples": 0})
    )
    # Both networks, the discriminator from step 2 on.
    assert len(norms) == 6 + 4
    assert max(norms) <= 1.01e-3


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
def test_bf16_trains_and_keeps_weights_in_float32(stage, make_config, memory_data, run_json):
    quiet = {"loggers": [], "progress": False, "accelerator": "cpu", "precision": "bf16-mixed"}
    config = make_config(stage, "run", trainer=quiet)
    content, _ = read_checkpoint(train(config).checkpoint)
    assert run_json(Path(config.output_dir))[0]["precision"] == "bf16-mixed"
    floats = [v for v in content["state_dict"].values() if v.is_floating_point()]
    assert {v.dtype for v in floats} == {torch.float32}
    assert all(v.isfinite().all() for v in floats)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_is_what_the_config_says(channels_last, make_config):
    module = run.build_module(make_config("autoencoder", "run", training={"channels_last": channels_last}))
    weight = module.autoencoder.encoder.blocks[0].conv.conv.weight
    kernels = [
        p for p in module.autoencoder.parameters() if p.ndim == 5 and p.shape[1] > 1 and p.shape[2] > 1
    ]
    assert weight.ndim == 5
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) is channels_last for p in kernels)


def test_compile_without_a_compiler_is_refused(make_config, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"training\.compile.*false"):
        run.build_module(make_config("transformer", "run", training={"compile": True}))


def _train_plain_and_compiled(folder):
    write_autoencoder(folder / "upstream.ckpt")
    run.build_data_module = lambda config, *_, **__: MemoryData(config)
    for name in ("plain", "compiled"):
        training = {"max_steps": 2, "compile": name == "compiled", "validate_every_steps": 2}
        config = transformer_config(
            folder, folder / name, folder / "upstream.ckpt", training=training, callbacks={"num_samples": 0}
        )
        run.train(config)


@pytest.mark.slow
def test_compiled_networks_train_alike(tmp_path):
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    run_process(_train_plain_and_compiled, tmp_path, log=tmp_path / "log.txt")
    plain, compiled = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("plain", "compiled"))
    assert compiled["metrics"]["val/loss"] == pytest.approx(plain["metrics"]["val/loss"], rel=1e-3)
    weights = read_checkpoint(tmp_path / "compiled" / "checkpoints" / "last.ckpt")[0]["state_dict"]
    assert (
        weights.keys()
        == read_checkpoint(tmp_path / "plain" / "checkpoints" / "last.ckpt")[0]["state_dict"].keys()
    )


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x"])
def test_an_unknown_device_is_refused(device, make_config, memory_data):
    with pytest.raises(ConfigError, match="--device"):
        train(make_config("transformer", "run"), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_refused(make_config, memory_data):
    with pytest.raises(ConfigError, match=r"--device: expected a CUDA device .*use auto or cpu"):
        train(make_config("transformer", "run"), device="cuda")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_names_the_package(name, make_config, memory_data):
    import importlib.util

    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    quiet = {"loggers": [name], "progress": False, "accelerator": "cpu"}
    with pytest.raises(MissingDependencyError, match=f"pip install {name}"):
        train(make_config("transformer", "run", trainer=quiet))


def test_an_unwritable_output_dir_is_refused_before_anything_starts(make_config, memory_data, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(Exception, match="run"):
        train(make_config("transformer", "run"))


def test_translation_trains_and_samples_beside_the_target(make_config, memory_data):
    model = {"kind": "decoder", "embed_dim": 24, "num_blocks": 2, "num_heads": 2}
    config = make_config("transformer", "run", model=model)
    result = train(config)
    assert "val/sample_distance" in result.metrics
    assert (Path(config.output_dir) / "samples" / "step-000006.png").exists()


def test_the_result_says_where_other_weights_than_the_last_are_kept(make_config):
    config = make_config("autoencoder", "run")
    folder = Path(config.output_dir) / "checkpoints"
    folder.mkdir(parents=True)
    assert run._kept(config, 6) == ""
    write_index(folder, [{"file": "best-step=000006.ckpt", "step": 6, "value": 0.7}])
    assert run._kept(config, 6) == ""
    write_index(folder, [{"file": "best-step=000000.ckpt", "step": 0, "value": 0.8}])
    assert (
        run._kept(config, 6) == ". The weights that are kept are those of step 0, the best by combined_metric"
    )
