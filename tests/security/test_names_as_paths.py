"""No name from a file leads out of the folder that it belongs to."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.config.data import name_problem
from prod9.config.load import config_from_dict
from prod9.data.stores.latents import TokenStore, build_token_store
from prod9.errors import CheckpointError, ConfigError, DataError
from prod9.models.checkpoint_file import read_checkpoint, write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager
from tests.data.test_latents import GRID, Encoder, build, make_items
from tests.training.tiny import autoencoder_config, write_autoencoder

EVIL = [
    "../../evil",
    "/etc/evil",
    "..",
    ".",
    ".hidden",
    "a/b",
    "a\\b",
    "C:evil",
    "",
    "a\0b",
    "a\nb",
    "[/]",
    "x" * 300,
    "a ",
]


@pytest.mark.parametrize("name", EVIL)
def test_labels_and_modalities_of_a_config(tmp_path: Path, name: str) -> None:
    values = autoencoder_config(tmp_path, tmp_path).model_dump(mode="json")
    for change in (
        {"modalities": [name, "T1"], "label_map": {name: 0, "T1": 1}},
        {"label_map": {"T1": 1, name: 0}},
    ):
        with pytest.raises(ConfigError, match="modalities and label_map"):
            config_from_dict(values | {"data": values["data"] | change}, source="config.yaml")


@pytest.mark.parametrize(
    "name", ["T1", "T1ce", "fracture, displaced".replace(",", ""), "Ödem", "T1+C", "t2 (axial)", "β-1.5"]
)
def test_ordinary_names_are_fine(name: str) -> None:
    assert not name_problem(name)


@given(name=st.text(max_size=80))
def test_what_is_fine_is_a_file_name_in_its_folder(name: str) -> None:
    if not name_problem(name):
        path = Path("/folder", f"{name}_0000.nii.gz")
        assert path.parent == Path("/folder")
        assert path.name == f"{name}_0000.nii.gz"
        assert name.isprintable()


@pytest.mark.parametrize("name", EVIL)
def test_labels_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.ckpt"
    write_autoencoder(path)
    content, _ = read_checkpoint(path)
    content["prod9"]["data"]["label_map"] = {name: 0}
    write_checkpoint(content, path)
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*label"):
        CheckpointManager.open(path)


@pytest.mark.parametrize(
    ("shard", "array"),
    [("../victim", "x"), ("0123456789abcdef", "../../x"), ("/tmp/victim", "tokens"), ("x", "tokens")],
)
def test_the_manifest_of_a_store(tmp_path: Path, shard: str, array: str) -> None:
    victim = tmp_path / "victim.x.npy"
    victim.touch()
    directory = tmp_path / "store"
    build(directory, make_items(2), Encoder())
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["shards"][shard] = {array: "0" * 64}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"manifest\.json: expected names of shards"):
            build_token_store(directory, make_items(2), Encoder(), key="e2", grid=GRID, overwrite=overwrite)
    with pytest.raises(DataError, match=r"manifest\.json"):
        TokenStore.open(directory)
    assert victim.exists()


def test_the_row_of_a_store(tmp_path: Path) -> None:
    build(tmp_path / "store", make_items(2), Encoder())
    path = tmp_path / "store" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["items"][0]["shard"] = "../../etc"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json"):
        TokenStore.open(tmp_path / "store")


def test_the_index_of_best_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    write_autoencoder(folder / "last.ckpt")
    write_autoencoder(tmp_path / "elsewhere.ckpt")
    for name in ("../../elsewhere.ckpt", str(tmp_path / "elsewhere.ckpt"), None, 3, {}):
        (folder / "best.json").write_text(json.dumps([{"file": name, "step": 1, "value": 1.0}]))
        assert CheckpointManager.resolve(tmp_path / "run").name == "last.ckpt"
