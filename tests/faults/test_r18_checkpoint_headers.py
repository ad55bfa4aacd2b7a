"""Odd values in a header, or in weights, give one error that names the file, at once and without memory."""

import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.config.load import config_from_dict
from prod9.errors import CheckpointError, ConfigError, Prod9Error
from prod9.files import sha256
from prod9.models.checkpoint_file import read_checkpoint, write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training.run import train
from tests.harness import Workspace, run
from tests.training.tiny import write_autoencoder


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("header") / "a.ckpt"
    write_autoencoder(path)
    return read_checkpoint(path)[0]


def put(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    *parents, last = key.split(".")
    section = changed["prod9"]
    for name in parents:
        section = section[name]
    section[last] = value
    return changed


def refused(path: Path, content: dict[str, Any], match: str = r"a\.ckpt") -> None:
    write_checkpoint(content, path)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=match):
        CheckpointManager.from_pretrained(path)
    assert time.monotonic() - began < 2


ODD = {
    "stage": [{}, [], None, 3, "no stage"],
    "config": [3, None, []],
    "architecture": [3, None, {}, {"autoencoder": 3}, {"autoencoder": {}}],
    "architecture.autoencoder.num_channels": [[8, 2**70], [2**20, 2**20], [-8, 8], [8], "8", None],
    "architecture.autoencoder.num_res_blocks": [[10_000_000, 1], [1], [2, 1], [0, 0]],
    "architecture.autoencoder.levels": [[5, 5], [5, 5, 2**62], [0, 5, 5], [10**6] * 6, []],
    "architecture.autoencoder.in_channels": [2**70, 0, -1, True],
    "architecture.autoencoder.kind": ["kl", "none", 3],
    "step": ["7", None, -1, 1.5, 2**70, True],
    "split": [[], {"train": 3}, {"train": [3]}, None],
    "inputs": [[], {"autoencoder": 3}, {"autoencoder": {"path": 3}}, {"a": {"path": "", "relative": ""}}],
    "data": [3, [], None],
    "data.grid": [[10**6] * 3, [16, 16], [0, 16, 16], "16", [16.5, 16, 16], [2**70] * 3],
    "data.label_map": [[], {"T1": "0"}, {"../x": 0}, 3],
    "data.spacing": [[0, 1, 1], [1, 1], ["a", 1, 1], [float("nan"), 1, 1], 3],
    "data.reference_affine": [[[1]], 3, [["a"] * 4] * 4, [[float("inf")] * 4] * 4],
    "validated": ["4", -1, 1.5],
}


@pytest.mark.parametrize("key", ODD)
def test_r18_odd_values_are_refused_at_once_by_the_name_of_the_file(key, content, tmp_path):
    for value in ODD[key]:
        refused(tmp_path / "a.ckpt", put(content, key, value))


@pytest.mark.parametrize(
    "name", sorted({"version", "stage", "architecture", "config", "split", "step", "data"})
)
def test_r18_a_missing_part_is_named(name, content, tmp_path):
    changed = copy.deepcopy(content)
    del changed["prod9"][name]
    refused(tmp_path / "a.ckpt", changed, match=f"without {name}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(ODD)), value=JSON)
def test_r18_any_value_gives_a_network_or_one_of_our_errors(content, tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("fuzz") / "a.ckpt"
    write_checkpoint(put(content, key, value), path)
    try:
        loaded = CheckpointManager.from_pretrained(path)
        config_from_dict(loaded.header["config"], source=str(path))
    except Prod9Error as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "state", [{"autoencoder.quantizer.levels": 5}, {3: torch.ones(1)}, {"autoencoder.x": torch.ones(1)}, {}]
)
def test_r18_weights_that_are_none(state, content, tmp_path):
    changed = copy.deepcopy(content)
    changed["state_dict"] = {**changed["state_dict"], **state} if state else {}
    refused(tmp_path / "a.ckpt", changed)


def test_r24_weights_that_repeat_one_value_for_ever(content, tmp_path):
    changed = copy.deepcopy(content)
    name = next(iter(changed["state_dict"]))
    changed["state_dict"][name] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(changed, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="tensors of at most"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_r18_weights_alone_cannot_be_resumed(content, make_config, memory_data, tmp_path):
    config = make_config("autoencoder", "run")
    folder = Path(config.output_dir) / "checkpoints"
    write_checkpoint(put(content, "step", 3), folder / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"weights alone.*--init-from"):
        train(config, resume="auto")


def test_r18_an_export_cannot_be_resumed(make_config, memory_data, tmp_path):
    config = make_config("autoencoder", "run", training={"max_steps": 1}, callbacks={"num_samples": 0})
    export = CheckpointManager.export(train(config).checkpoint, tmp_path / "export")
    other = make_config("autoencoder", "other", training={"max_steps": 1})
    with pytest.raises(CheckpointError, match="--init-from"):
        train(other, resume=export)


@pytest.mark.parametrize("stage", [{}, [], 3, None, True, "autoencode"])
def test_r18_a_stage_in_a_config_may_be_anything(stage):
    with pytest.raises(ConfigError, match="stage: expected"):
        config_from_dict({"stage": stage}, source="config.yaml")


def test_r18_set_of_a_stage(workspace: Workspace) -> None:
    ran = run("prod9-train-autoencoder", "train", "--config", workspace.stage1, "--set", "stage={}")
    assert ran.code == 2
    assert "stage: expected" in ran.err


# -- exports and the JSON files of a run ----------------------------------------------------------------

DEEP = "[" * 100_000
ODD_JSON = ["", "{", DEEP, "[]", "null", '{"prod9": 3, "files": 3}', '{"files": {"config.json": 1}}']


def damaged_export(workspace: Workspace, folder: Path, name: str, text: str) -> Path:
    export = CheckpointManager.export(workspace.run1, folder / "export")
    (export / name).write_text(text)
    if name != "manifest.json":
        manifest = json.loads((export / "manifest.json").read_text())
        manifest["files"][name] = {"sha256": sha256(export / name), "bytes": len(text)}
        (export / "manifest.json").write_text(json.dumps(manifest))
    return export


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "model.safetensors"])
@pytest.mark.parametrize(
    "text", ["", "{", DEEP, "[]", "null", '{"prod9": 3, "files": 3}', '{"files": {"config.json": 1}}']
)
def test_r17_odd_files_of_an_export(workspace, tmp_path, name, text):
    export = damaged_export(workspace, tmp_path, name, text)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        CheckpointManager.open(export)


def test_r21_an_export_that_cannot_be_read(workspace, tmp_path):
    export = CheckpointManager.export(workspace.run1, tmp_path / "export")
    for name in ("config.json", "model.safetensors"):
        (export / name).unlink()
        (export / name).mkdir()
        with pytest.raises(CheckpointError):
            CheckpointManager.open(export)


@pytest.mark.parametrize(
    "text", ["", "{", DEEP, "[]", "3", '[{"file": 3}]', '[{"file": "x", "value": "a"}]', "[null]"]
)
def test_r17_odd_json_of_a_run_is_no_obstacle(text, make_config, memory_data):
    config = make_config("autoencoder", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    first = train(config)
    output_dir = Path(config.output_dir)
    for name in ("checkpoints/best.json", "metrics.json", "run.json"):
        (output_dir / name).write_text(text)
    assert train(config, resume="auto").step == first.step
    longer = make_config("autoencoder", "run", training={"max_steps": 3}, callbacks={"num_samples": 0})
    assert train(longer, resume="auto").step == 3


def test_r21_a_link_to_itself_and_a_pipe_are_no_checkpoints(tmp_path):
    import os

    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name in ("loop.ckpt", "pipe.ckpt", "nowhere/a.ckpt", "x" * 300):
        with pytest.raises(CheckpointError):
            CheckpointManager.open(tmp_path / name)


def test_r18_old_checkpoints_and_the_packaged_weights_are_read():
    from prod9.demo import plan

    for name in ("stage1", "stage2", "stage2_label", "stage2_refiner", "maisi_vae"):
        folder = Path(plan.__file__).parent / "weights" / name
        if folder.is_dir():
            assert CheckpointManager.from_pretrained(folder).header["format"] == 1


def test_r18_a_copy_of_a_header_is_not_changed_by_writing_it(content, tmp_path):
    before = copy.deepcopy(content["prod9"])
    write_checkpoint(content, tmp_path / "a.ckpt")
    assert content["prod9"] == before
    shutil.rmtree(tmp_path)
