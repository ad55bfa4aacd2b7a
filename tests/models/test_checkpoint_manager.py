"""CheckpointManager: which file a path means, rebuilding networks, refusals."""

import json
import logging
import shutil

import pytest
import torch

from prod9.errors import CheckpointError
from prod9.models.checkpoint_file import read_checkpoint, sidecar, write_checkpoint
from prod9.models.checkpoint_manager import (
    CheckpointManager,
    make_header,
)
from prod9.models.checkpoint_places import describe_input, write_index
from prod9.models.factory import ModelFactory
from tests.training.tiny import transformer_config, write_autoencoder


def run_with(tmp_path, *names):
    folder = tmp_path / "run" / "checkpoints"
    for seed, name in enumerate(names):
        write_autoencoder(folder / name, seed=seed)
    return tmp_path / "run"


def write_transformer(path, autoencoder):
    config = transformer_config(path.parent, path.parent, autoencoder)
    upstream = CheckpointManager.load_autoencoder(autoencoder)
    network = ModelFactory.create_transformer(config.model, levels=upstream.network.levels)
    header = make_header(
        config,
        architecture={
            "transformer": config.model.model_dump(mode="json"),
            "autoencoder": upstream.header["architecture"]["autoencoder"],
        },
        step=3,
        split={"train": [], "val": [], "test": []},
        inputs={"autoencoder": describe_input(upstream.path, upstream.sha256, path.parent)},
        data=upstream.header["data"],
    )
    state = {f"decoder.{name}": tensor for name, tensor in network.state_dict().items()}
    write_checkpoint({"prod9": header, "state_dict": state}, path)
    return network


def test_a_run_folder_means_its_best_checkpoint_or_its_last(tmp_path):
    run = run_with(tmp_path, "best-step=000004.ckpt", "best-step=000008.ckpt", "last.ckpt")
    write_index(run / "checkpoints", [{"file": "best-step=000004.ckpt", "step": 4, "value": 1.0}])

    assert CheckpointManager.resolve(run).name == "best-step=000004.ckpt"
    assert CheckpointManager.resolve(run, prefer="last").name == "last.ckpt"
    assert CheckpointManager.resolve(run / "checkpoints").name == "best-step=000004.ckpt"
    assert CheckpointManager.resolve(run / "checkpoints" / "last.ckpt").name == "last.ckpt"


def test_an_index_cannot_lead_out_of_the_folder(tmp_path):
    run = run_with(tmp_path, "last.ckpt")
    write_autoencoder(tmp_path / "elsewhere.ckpt")
    write_index(run / "checkpoints", [{"file": "../../elsewhere.ckpt", "step": 1, "value": 1.0}])
    assert CheckpointManager.resolve(run).name == "last.ckpt"


@pytest.mark.parametrize("what", ["nothing", "empty"])
def test_nothing_to_load_is_said_with_the_remedy(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=rf"{what}.*train that stage first"):
        CheckpointManager.resolve(tmp_path / what)


def test_load_rebuilds_the_network_from_its_header(tmp_path):
    state = write_autoencoder(tmp_path / "model.ckpt")
    loaded = CheckpointManager.load_autoencoder(tmp_path / "model.ckpt")

    assert not loaded.network.training
    assert loaded.header["step"] == 7
    assert all(torch.equal(state[name], value) for name, value in loaded.network.state_dict().items())


def test_a_damaged_last_falls_back_to_the_one_before_and_says_so(tmp_path, caplog):
    run = run_with(tmp_path, "last.ckpt", "last.ckpt")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])

    with caplog.at_level(logging.WARNING, logger="prod9"):
        opened = CheckpointManager.open(run, prefer="last")
    assert opened.path.name == "previous.ckpt"
    assert "last.ckpt" in caplog.text
    assert "previous.ckpt" in caplog.text


def test_a_file_that_was_named_is_never_replaced_by_another(tmp_path):
    run = run_with(tmp_path, "last.ckpt", "last.ckpt")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        CheckpointManager.open(last)


def test_the_wrong_stage_is_refused_by_name(tmp_path):
    write_autoencoder(tmp_path / "stage1.ckpt")
    with pytest.raises(
        CheckpointError, match=r"expected a checkpoint of stage transformer, got stage autoencoder"
    ):
        CheckpointManager.load_transformer(tmp_path / "stage1.ckpt")


@pytest.mark.parametrize("content", [{"epoch": 1, "state_dict": {}}, {"model": torch.zeros(2)}])
def test_a_foreign_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="another program"):
        CheckpointManager.open(tmp_path / "foreign.pt")


def test_an_unknown_format_names_the_version_that_wrote_it(tmp_path):
    write_autoencoder(tmp_path / "a.ckpt")
    content, _ = read_checkpoint(tmp_path / "a.ckpt")
    content["prod9"] |= {"format": 9, "version": "7.0"}
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"format 1, got format 9 .*7\.0"):
        CheckpointManager.open(tmp_path / "a.ckpt")


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_weights_are_loaded_strictly(tmp_path, change):
    write_autoencoder(tmp_path / "a.ckpt")
    content, _ = read_checkpoint(tmp_path / "a.ckpt")
    state = content["state_dict"]
    name = next(iter(state))
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["autoencoder.extra"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(1)
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="same architecture"):
        CheckpointManager.load_autoencoder(tmp_path / "a.ckpt")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 1e-3)])
def test_export_round_trips(tmp_path, dtype, tolerance):
    state = write_autoencoder(tmp_path / "a.ckpt")
    folder = CheckpointManager.export(tmp_path / "a.ckpt", tmp_path / "shared", dtype=dtype)
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "config.json", "manifest.json", "model.safetensors",
    ]  # fmt: skip
    loaded = CheckpointManager.from_pretrained(folder)
    for name, value in loaded.network.state_dict().items():
        assert value.dtype == state[name].dtype
        torch.testing.assert_close(value, state[name], rtol=tolerance, atol=tolerance)
    assert CheckpointManager.resolve(folder) == folder
    assert "2 train, 1 val" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_flipped_byte_in_an_export_is_noticed(tmp_path, name):
    write_autoencoder(tmp_path / "a.ckpt")
    folder = CheckpointManager.export(tmp_path / "a.ckpt", tmp_path / "shared")
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name}.*damaged"):
        CheckpointManager.from_pretrained(folder)


def test_an_export_without_its_manifest_is_refused(tmp_path):
    write_autoencoder(tmp_path / "a.ckpt")
    folder = CheckpointManager.export(tmp_path / "a.ckpt", tmp_path / "shared")
    (folder / "manifest.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(CheckpointError, match="manifest"):
        CheckpointManager.load_autoencoder(folder)


def test_a_transformer_finds_its_autoencoder_again_after_both_moved(tmp_path):
    write_autoencoder(tmp_path / "old" / "stage1.ckpt")
    network = write_transformer(tmp_path / "old" / "stage2.ckpt", tmp_path / "old" / "stage1.ckpt")
    shutil.move(tmp_path / "old", tmp_path / "new")

    loaded = CheckpointManager.load_transformer(tmp_path / "new" / "stage2.ckpt")
    assert all(torch.equal(network.state_dict()[k], v) for k, v in loaded.network.state_dict().items())
    assert CheckpointManager.load_upstream(loaded).path.parent.name == "new"


def test_another_autoencoder_than_the_trained_one_is_refused(tmp_path):
    stage1 = tmp_path / "stage1.ckpt"
    write_autoencoder(stage1)
    write_transformer(tmp_path / "stage2.ckpt", stage1)
    loaded = CheckpointManager.load_transformer(tmp_path / "stage2.ckpt")
    write_autoencoder(stage1, seed=5)
    with pytest.raises(CheckpointError, match="tokens mean something else"):
        CheckpointManager.load_upstream(loaded)
    stage1.unlink()
    sidecar(stage1).unlink()
    with pytest.raises(CheckpointError, match="present path"):
        CheckpointManager.load_upstream(loaded)


def test_exports_of_both_stages_move_together(tmp_path):
    write_autoencoder(tmp_path / "stage1.ckpt")
    write_transformer(tmp_path / "stage2.ckpt", tmp_path / "stage1.ckpt")
    shared = tmp_path / "shared"
    autoencoder = CheckpointManager.export(tmp_path / "stage1.ckpt", shared / "ae", dtype=torch.float16)
    CheckpointManager.export(tmp_path / "stage2.ckpt", shared / "tf", autoencoder=autoencoder)
    shutil.move(shared, tmp_path / "elsewhere")

    loaded = CheckpointManager.from_pretrained(tmp_path / "elsewhere" / "tf")
    assert CheckpointManager.load_upstream(loaded).path == tmp_path / "elsewhere" / "tf" / ".." / "ae"
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "tf" / "config.json").read_text()
