"""Damage is noticed without the hash beside the file, a newer format stays, and limits are those of the file."""

import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.errors import CheckpointError
from prod9.models.checkpoint_file import (
    content_digest,
    link_checkpoint,
    read_checkpoint,
    sidecar,
    write_checkpoint,
)
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training.run import train
from tests.training.tiny import write_autoencoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ckpt") / "a.ckpt"
    write_autoencoder(path)
    return path


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_r13_a_flipped_bit_never_gives_other_values(checkpoint, place, bit):
    content = bytearray(checkpoint.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged = checkpoint.with_name("damaged.ckpt")
    damaged.write_bytes(content)
    true, _ = read_checkpoint(checkpoint)
    with suppress(CheckpointError):
        # What passes is a bit of the archive's own padding.
        assert content_digest(read_checkpoint(damaged)[0]) == content_digest(true)


def test_r13_files_without_a_digest_are_read(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"prod9": {"format": 1}, "state_dict": {"w": torch.ones(3)}}, path)
    assert read_checkpoint(path)[0]["state_dict"]["w"].sum() == 3


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(value=PLAIN)
def test_r13_the_digest_is_that_of_what_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("digest") / "a.ckpt"
    tensors = [
        torch.arange(6.0).reshape(2, 3).T,
        torch.tensor(True),
        torch.ones(2, dtype=torch.bfloat16)[:0],
        torch.ones(3, dtype=torch.bfloat16),
        torch.zeros(1, 2, 2, 2, 2).contiguous(memory_format=torch.channels_last_3d),
    ]
    write_checkpoint({"prod9": {"a": value}, "state_dict": dict(zip("abcde", tensors, strict=True))}, path)
    sidecar(path).unlink()
    assert read_checkpoint(path)[0]["prod9"]["digest"]


@pytest.mark.parametrize(
    "pair", [([1, 2], [12]), ({"a": 1}, {"a": "1"}), ([[], []], [[[]]]), (1, True), (0.0, -0.0)]
)
def test_r13_different_contents_have_different_digests(pair):
    assert content_digest(pair[0]) != content_digest(pair[1])


def set_format(path: Path, number: object) -> None:
    content, _ = read_checkpoint(path)
    content["prod9"] |= {"format": number, "version": "9.9"}
    write_checkpoint(content, path)


def test_r29_a_newer_format_is_refused_and_stays(make_config, memory_data):
    config = make_config("transformer", "run", callbacks={"checkpoint": {"every_steps": 2}, "num_samples": 0})
    train(config)
    folder = Path(config.output_dir) / "checkpoints"
    set_format(folder / "last.ckpt", 99)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    longer = make_config("transformer", "run", training={"max_steps": 8}, callbacks={"num_samples": 0})
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: expected checkpoint format 1, got format 99.*9\.9.*newer"
    ):
        train(longer, resume="auto")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("number", [None, "1", 1.5, True, -1, 0, [1]])
def test_r18_a_format_that_is_no_number_of_ours_is_damage(number, checkpoint, tmp_path):
    path = Path(shutil.copy(checkpoint, tmp_path / "a.ckpt"))
    set_format(path, number)
    with pytest.raises(CheckpointError, match="expected checkpoint format 1"):
        CheckpointManager.open(path)


def test_r24_an_archive_that_unpacks_to_more_than_it_is_long_is_refused(tmp_path):
    plain, packed = tmp_path / "plain.ckpt", tmp_path / "packed.ckpt"
    torch.save({"w": torch.zeros(20_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match=r"packed\.ckpt: expected an archive that is not compressed"):
        read_checkpoint(packed)


def test_r24_a_pickle_cannot_ask_for_memory(tmp_path):
    class Bomb:
        def __reduce__(self):
            return bytearray, (1 << 33,)

    path = tmp_path / "bomb.ckpt"
    torch.save({"w": Bomb()}, path)
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"w": Bomb()}))
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt"):
        read_checkpoint(path)


def test_r20_a_failed_save_names_the_checkpoint_and_what_is_good(tmp_path, monkeypatch):
    from prod9.errors import DataError

    path = tmp_path / "last.ckpt"
    write_checkpoint({"step": 1}, path)

    def fill_the_disk(content, target):
        Path(target).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat x.cc")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(
        DataError, match=r"last\.ckpt: cannot be written \(Pytorch.*written before are whole.*--resume"
    ):
        write_checkpoint({"step": 2}, path, keep_previous=True)
    assert read_checkpoint(path)[0] == {"step": 1}
    assert not list(tmp_path.glob(".tmp-*"))


def test_r20_two_sizes_that_differ_never_read_the_same(tmp_path, monkeypatch):
    import re
    from types import SimpleNamespace

    for free in (2**20 + 1, 2**20 - 1, 1_000_000, 50):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(CheckpointError) as caught:
            write_checkpoint({"w": torch.zeros(100)}, tmp_path / "a.ckpt")
        wanted, there = re.findall(r"[\d.]+(?= MiB)", str(caught.value))
        assert float(wanted) > float(there)


def test_r25_a_link_is_whole_with_its_hash(tmp_path):
    write_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    link_checkpoint(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    link_checkpoint(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    assert sidecar(tmp_path / "b.ckpt").read_text().split()[1] == "b.ckpt"
    assert read_checkpoint(tmp_path / "b.ckpt")[0] == {"step": 1}
