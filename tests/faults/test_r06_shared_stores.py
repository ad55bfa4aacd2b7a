"""A token store that another may be reading is never emptied, and what kills left in it goes."""

import json
import pickle
from pathlib import Path

import pytest

from prod9.data.stores.latents import TokenStore, build_token_store, find_in_store, replace_store
from prod9.data.stores.translations import VolumeStore
from prod9.errors import DataError
from tests.data.test_latents import GRID, Encoder, build, make_items
from tests.harness import Workspace, run


def test_r6_another_encoder_is_refused_and_the_reader_reads_on(tmp_path):
    store = build(tmp_path, make_items(3), Encoder())
    with pytest.raises(DataError, match=r"another run may be reading.*--overwrite"):
        build(tmp_path, make_items(3), Encoder(), key="e2")
    with pytest.raises(DataError, match="in use by another process"):
        build(tmp_path, make_items(3), Encoder(), key="e2", overwrite=True)
    again = pickle.loads(pickle.dumps(store))
    assert len(again[2]["case_id"]) == len(store[2]["case_id"])
    del store
    with pytest.raises(DataError, match="in use by another process"):
        replace_store(tmp_path, key="e2", grid=GRID)
    del again
    replace_store(tmp_path, key="e2", grid=GRID)
    assert not list(tmp_path.glob("*.npy"))


def test_r6_what_is_found_is_held_too(tmp_path):
    build(tmp_path, make_items(2), Encoder())
    found = find_in_store(tmp_path, make_items(2), key="e1", grid=GRID)
    assert found is not None
    with pytest.raises(DataError, match="in use"):
        replace_store(tmp_path, key="e2", grid=GRID)
    found = TokenStore.open(tmp_path)
    with pytest.raises(DataError, match="in use"):
        replace_store(tmp_path, key="e2", grid=GRID)


def test_r6_a_store_on_a_read_only_disk_is_read(tmp_path):
    build(tmp_path, make_items(2), Encoder())
    for path in (*tmp_path.iterdir(), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(TokenStore.open(tmp_path)) == 2
    finally:
        tmp_path.chmod(0o755)


def test_r6_encode_asks_for_it_by_name(workspace: Workspace, tmp_path: Path) -> None:
    store = f"data.store_dir={tmp_path / 'shared'}"
    encode = ["prod9", "encode", "--config", workspace.stage2, "--set", store, "--json"]
    first = run(*encode, "--output-dir", tmp_path / "a")
    assert first.code == 0, first.err
    shards = sorted(path.name for path in (tmp_path / "shared").glob("*.npy"))
    ran = run("prod9", "export", workspace.run1, tmp_path / "other")
    assert ran.code == 0, ran.err
    other = [*encode, "--output-dir", tmp_path / "b", "--set", f"inputs.autoencoder={tmp_path / 'other'}"]
    refused = run(*other)
    assert refused.code == 1
    assert "--overwrite" in refused.err
    assert sorted(path.name for path in (tmp_path / "shared").glob("*.npy")) == shards
    replaced = run(*other, "--overwrite")
    assert replaced.code == 0, replaced.err
    assert replaced.json["items"] == first.json["items"]


def test_r26_what_kills_left_in_a_store_goes_and_what_is_not_ours_stays(tmp_path):
    build(tmp_path, make_items(2), Encoder())
    orphan, mine = tmp_path / "0123456789abcdef.tokens.npy", tmp_path / "notes.npy"
    for path in (orphan, mine, tmp_path / ".tmp-0123456789ab-x.npy"):
        path.touch()
    build(tmp_path, make_items(3), Encoder())
    assert not orphan.exists()
    assert not list(tmp_path.glob(".tmp-*"))
    assert mine.exists()


def test_r26_a_store_that_lacks_nothing_is_swept_too(tmp_path):
    build(tmp_path, make_items(2), Encoder())
    (tmp_path / ".tmp-0123456789ab-manifest.json").write_text("{")
    (tmp_path / "0123456789abcdef.latents.npy").touch()
    assert find_in_store(tmp_path, make_items(2), key="e1", grid=GRID) is not None
    assert not list(tmp_path.glob(".tmp-*"))
    assert not (tmp_path / "0123456789abcdef.latents.npy").exists()


def test_r29_a_store_of_a_newer_format_is_refused_and_stays(tmp_path):
    build(tmp_path, make_items(2), Encoder())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for overwrite in (False, True):
        with pytest.raises(DataError, match="expected a store of format 2, got format 99 of a newer"):
            build(tmp_path, make_items(2), Encoder(), overwrite=overwrite)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"format": 2, "items": 3}',
        '{"format": 2, "items": [{}], "shards": {}}',
        "[" * 100_000,
    ],
)
def test_r17_a_damaged_manifest_names_the_file(tmp_path, content):
    build(tmp_path, make_items(2), Encoder())
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        build(tmp_path, make_items(2), Encoder())


def test_r8_an_error_of_the_last_shard_does_not_hide_what_ended_the_encoding(tmp_path, monkeypatch, caplog):
    from prod9.data.stores import shards

    def full(self):
        raise DataError("no space")

    monkeypatch.setattr(shards.ShardWriter, "flush", full)
    with pytest.raises(KeyboardInterrupt):
        build_token_store(tmp_path, make_items(2), Encoder(fail_after=1), key="e1", grid=GRID)
    assert "The last encoded volumes are lost" in caplog.text


def test_r6_a_store_of_translations_that_was_named_keeps_those_of_others(tmp_path):
    import torch

    store = VolumeStore(tmp_path)
    store.fill("ab", lambda key: torch.zeros(1, 2, 2, 2))
    store.fill("c", lambda key: torch.zeros(1, 2, 2, 2), keep_others=True)
    assert sorted(path.stem for path in tmp_path.glob("*.npy")) == ["a", "b", "c"]
