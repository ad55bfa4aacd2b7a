"""How Lightning writes and reads our checkpoint files."""

import pytest
import torch

from prod9.errors import CheckpointError
from prod9.training.lightning.checkpoint_io import AtomicCheckpointIO


def test_only_last_keeps_the_one_before(tmp_path):
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint({"step": step}, tmp_path / "last.ckpt")
        io.save_checkpoint({"step": step}, tmp_path / "other.ckpt")
    assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == [
        "last.ckpt",
        "other.ckpt",
        "previous.ckpt",
    ]
    assert io.load_checkpoint(tmp_path / "previous.ckpt") == {"step": 1}
    io.remove_checkpoint(tmp_path / "other.ckpt")
    assert not list(tmp_path.glob("other*"))


def test_objects_are_refused_even_when_asked_for(tmp_path):
    torch.save({"object": torch.nn.Linear(1, 1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="other objects"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="local files"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={})
