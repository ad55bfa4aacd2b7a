"""``prod9 encode``: the store before training, resumed, verified."""

import shutil
from pathlib import Path

import pytest

from prod9.data.stores import latents, shards
from tests.harness import Workspace, run


@pytest.fixture
def args(workspace: Workspace, tmp_path: Path) -> list[object]:
    return ["--config", workspace.stage2, "--output-dir", tmp_path / "run", "--json"]


def test_training_finds_what_was_encoded(
    workspace: Workspace, tmp_path: Path, args: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run("prod9", "encode", *args, "-j", 2)
    assert ran.code == 0, ran.err
    # Three patients of four modalities to train on, mirrored; two and one to validate and test.
    assert ran.json["items"] == 3 * 4 * 2 + 3 * 4
    assert ran.json["damaged"] == []
    one_by_one = run("prod9", "encode", *args[:2], "--output-dir", tmp_path / "other", "--json", "-j", 0)
    assert one_by_one.json["items"] == ran.json["items"]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(shards.ShardWriter, "add", never)
    assert run("prod9", "encode", *args).code == 0
    ran = run("prod9-train-transformer", "train", *args[:4], "--set", "training.max_steps=1")
    assert ran.code == 0, ran.err


def test_threads_store_the_same_tokens(workspace: Workspace, tmp_path: Path, args: list[object]) -> None:
    stores = []
    for workers in (0, 3):
        folder = tmp_path / f"run{workers}"
        assert run("prod9", "encode", *args[:2], "--output-dir", folder, "-j", workers).code == 0
        stores.append(latents.TokenStore.open(folder / "store"))
    assert len(stores[0]) == len(stores[1])
    for k in range(len(stores[0])):
        assert (stores[0][k]["indices"] == stores[1][k]["indices"]).all()
        assert stores[0].describe(k) == stores[1].describe(k)


def test_processes_store_the_same_tokens(tmp_path: Path, args: list[object]) -> None:
    stores = []
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        ran = run("prod9", "encode", *args[:2], "--output-dir", folder, "--processes", processes)
        assert ran.code == 0, ran.err
        stores.append(latents.TokenStore.open(folder / "store"))
    assert len(stores[0]) == len(stores[1])
    for k in range(len(stores[0])):
        assert (stores[0][k]["indices"] == stores[1][k]["indices"]).all()
        assert stores[0].describe(k) == stores[1].describe(k)


def test_an_interrupted_store_goes_on(
    tmp_path: Path, args: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, count = shards.ShardWriter.add, []

    def interrupted(self: shards.ShardWriter, *rest: object) -> None:
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        add(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shards.ShardWriter, "add", interrupted)
    ran = run("prod9", "encode", *args)
    assert ran.code == 130
    assert "goes on from here" in ran.err
    assert latents.verify_store(tmp_path / "run" / "store").items == 5
    count.clear()
    monkeypatch.setattr(shards.ShardWriter, "add", lambda self, *rest: (count.append(1), add(self, *rest)))
    ran = run("prod9", "encode", *args)
    assert ran.code == 0, ran.err
    assert len(count) == ran.json["items"] - 5


def test_damage_is_found_and_mended(tmp_path: Path, args: list[object]) -> None:
    whole = run("prod9", "encode", *args).json
    shard = next((tmp_path / "run" / "store").glob("*.tokens.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    ran = run("prod9", "encode", *args, "--verify")
    assert ran.code == 1
    assert ran.json["damaged"] == [shard.name.split(".")[0]]
    ran = run("prod9", "encode", *args[:4], "--verify")
    assert "1 shard damaged; encode again" in ran.out
    assert run("prod9", "encode", *args).json["items"] == whole["items"]
    assert run("prod9", "encode", *args, "--verify").code == 0


def test_what_cannot_be_encoded(workspace: Workspace, tmp_path: Path, args: list[object]) -> None:
    ran = run("prod9", "encode", *args, "--verify")
    assert ran.code == 1
    assert "expected a token store" in ran.err
    ran = run("prod9", "encode", "--config", workspace.stage1)
    assert ran.code == 2
    assert "got autoencoder" in ran.err
    ran = run("prod9", "encode", *args, "--set", f"inputs.autoencoder={tmp_path / 'nowhere'}")
    assert ran.code == 2
    assert not (tmp_path / "run").exists()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
