"""The folder of a run: its lock, its sessions, and temporary files."""

import json
import os
import socket

import pytest

from prod9.errors import ConfigError
from prod9.models.run_folder import append_run, locked, require_fresh, sweep


def test_a_second_run_in_one_folder_is_refused_and_names_the_first(tmp_path):
    alive = {"pid": os.getppid(), "host": socket.gethostname()}
    (tmp_path / ".lock").write_text(json.dumps(alive))
    with pytest.raises(ConfigError, match=f"process {os.getppid()}"), locked(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(ConfigError, match="elsewhere"), locked(tmp_path):
        pass


def test_the_lock_is_released_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    assert not (tmp_path / ".lock").exists()


def test_a_folder_with_checkpoints_is_refused_with_the_remedy(tmp_path):
    require_fresh(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ConfigError, match="--resume"):
        require_fresh(tmp_path)


def test_sweep_leaves_checkpoints_alone(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    (folder / ".tmp-1a2b-last.ckpt").touch()
    sweep(tmp_path)
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


def test_sessions_are_appended(tmp_path):
    append_run(tmp_path, {"seconds": 1})
    append_run(tmp_path, {"seconds": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"runs": [{"seconds": 1}, {"seconds": 2}]}
