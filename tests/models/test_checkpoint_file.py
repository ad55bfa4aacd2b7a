"""Checkpoint files: hashes, damage, the copy before the last, no pickles."""

import errno
import itertools
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prod9.errors import CheckpointError, DataError
from prod9.models import checkpoint_file
from prod9.models.checkpoint_file import (
    read_checkpoint,
    remove_checkpoint,
    sidecar,
    tensor_bytes,
    write_checkpoint,
)
from tests.processes import start

CONTENT = {"state_dict": {"w": torch.arange(64.0)}, "step": 3}


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_what_is_written_is_read_back_with_its_hash(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    digest = write_checkpoint(CONTENT, path)
    content, found = read_checkpoint(path)

    assert found == digest == sidecar(path).read_text().split()[0]
    assert torch.equal(content["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_the_one_before_is_kept_with_its_hash(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        write_checkpoint(CONTENT | {"step": step}, path, keep_previous=True)
    assert read_checkpoint(path)[0]["step"] == 3
    assert read_checkpoint(tmp_path / "previous.ckpt")[0]["step"] == 2


@pytest.mark.parametrize(
    # Without the hash a flipped bit in a tensor may pass.
    ("damage", "with_hash"),
    [("flip", True), ("truncate", True), ("truncate", False), ("empty", True), ("empty", False)],
)
def test_damage_is_noticed_and_names_the_file(tmp_path, damage, with_hash):
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-200]), "empty": b""}[damage])
    if not with_hash:
        sidecar(path).unlink()
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*expected"):
        read_checkpoint(path)


def test_a_missing_hash_condemns_nothing(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    sidecar(path).unlink()
    assert read_checkpoint(path)[0]["step"] == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_pickled_objects_never_run(tmp_path):
    path, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    torch.save({"state_dict": {}, "payload": Payload(marker)}, path)
    with pytest.raises(CheckpointError, match="other objects"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_file_that_is_no_dictionary_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="got list"):
        read_checkpoint(tmp_path / "list.pt")


def test_a_full_disk_is_noticed_before_anything_is_touched(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    monkeypatch.setattr(checkpoint_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"MiB of free space.*output_dir"):
        write_checkpoint(CONTENT | {"step": 4}, path, keep_previous=True)
    assert read_checkpoint(path)[0]["step"] == 3


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)

    def fill_the_disk(content, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_file.torch, "save", fill_the_disk)
    with pytest.raises(DataError, match="No space left"):
        write_checkpoint(CONTENT | {"step": 4}, path, keep_previous=True)
    assert read_checkpoint(path)[0]["step"] == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_remove_takes_the_hash_along(tmp_path):
    path = tmp_path / "best.ckpt"
    write_checkpoint(CONTENT, path)
    remove_checkpoint(path)
    remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_tensor_bytes_counts_nested_tensors():
    assert tensor_bytes({"a": torch.zeros(4), "b": [torch.zeros(2, dtype=torch.int64), {"c": 1}]}) == 32


def _save_for_ever(folder):
    for step in itertools.count(1):
        content = {"w": torch.full((200000,), float(step)), "step": step}
        write_checkpoint(content, folder / "last.ckpt", keep_previous=True)
        (folder / f"saved-{os.getpid()}").touch()


def test_kill_9_while_saving_leaves_a_good_checkpoint(tmp_path):
    """The system's temporary folder is elsewhere, where Lightning's own writer loses files."""
    for attempt in range(3):
        child = start(_save_for_ever, tmp_path)
        ends = time.monotonic() + 60
        while not (tmp_path / f"saved-{child.pid}").exists():
            assert time.monotonic() < ends
            time.sleep(0.005)
        time.sleep(0.05 + 0.037 * attempt)
        child.kill()
        child.join()
        names = [n for n in ("last.ckpt", "previous.ckpt") if (tmp_path / n).exists()]
        content = read_checkpoint(tmp_path / names[0])[0]
        assert content["w"].eq(content["step"]).all()
    shutil.rmtree(tmp_path)
