"""One process has a folder: the lock has its content before its name, and the system frees it."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from prod9.errors import ConfigError
from prod9.system import folders
from prod9.system.folders import LOCK, SharedLock, claimed

fork = multiprocessing.get_context("fork")


def hold(folder: Path, ready: str, seconds: float) -> None:
    with claimed(folder):
        Path(ready).touch()
        time.sleep(seconds)


def held_by_another(folder: Path):
    ready = folder.parent / "ready"
    child = fork.Process(target=hold, args=(folder, str(ready), 60.0))
    child.start()
    for _ in range(1000):
        if ready.exists():
            return child
        time.sleep(0.01)
    raise AssertionError("the other process never got the lock")


def contend(folder: Path, log: str, rounds: int) -> None:
    for _ in range(rounds):
        try:
            with claimed(folder), Path(log).open("a", encoding="utf-8") as file:
                file.write("in\n")
                file.flush()
                time.sleep(0.0005)
                file.write("out\n")
        except ConfigError:
            pass


def test_r5_never_two_at_a_time(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    children = [fork.Process(target=contend, args=(folder, str(log), 60)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    lines = log.read_text().split()
    assert len(lines) >= 4
    assert lines == ["in", "out"] * (len(lines) // 2)
    assert list(folder.iterdir()) == []


def test_r5_an_empty_lock_is_not_taken_while_another_process_holds_it(tmp_path):
    child = held_by_another(tmp_path / "run")
    try:
        os.truncate(tmp_path / "run" / LOCK, 0)
        with pytest.raises(ConfigError, match="held by process"), claimed(tmp_path / "run"):
            pass
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", '{"pid": "abc"}', '{"pid": null, "host": null}', "[" * 100_000, '{"pid": 1e400}'],
)
def test_r17_a_damaged_lock_that_nobody_holds_is_taken(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with claimed(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_r5_kill_9_frees_the_folder_and_another_process_of_that_number_does_not_keep_it(tmp_path):
    child = held_by_another(tmp_path / "run")
    with (
        pytest.raises(ConfigError, match=rf"process {child.pid} on {socket.gethostname()}"),
        claimed(tmp_path / "run"),
    ):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    lock = tmp_path / "run" / LOCK
    assert lock.exists()
    # The parent of this process lives, and did not begin when the one that died did.
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"pid": os.getppid()}))
    with claimed(tmp_path / "run"):
        pass


def test_r5_a_forked_loader_that_outlives_its_run_does_not_keep_the_folder(tmp_path):
    with claimed(tmp_path):
        loader = fork.Process(target=time.sleep, args=(60,))
        loader.start()
    try:
        with claimed(tmp_path):
            pass
    finally:
        loader.kill()
        loader.join()


def test_r5_a_job_that_was_requeued_elsewhere_takes_its_own_lock(tmp_path, monkeypatch):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "node7", "started": "5", "job": "42"}))
    with pytest.raises(ConfigError, match="node7"), claimed(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with claimed(tmp_path):
        pass


def test_r6_a_shared_lock_keeps_the_deleter_out_until_it_goes(tmp_path):
    first, second = SharedLock(tmp_path / "lock"), SharedLock(tmp_path / "lock")
    assert not first.make_exclusive()
    del second
    assert first.make_exclusive()
    first.make_shared()
    assert not SharedLock(tmp_path / "lock").make_exclusive()


def test_r5_without_locks_of_files_nothing_open_is_deleted(tmp_path, monkeypatch):
    """Windows has no such locks, and deletes no file that a process has open."""
    monkeypatch.setattr(folders, "fcntl", None)
    opened, closed = folders.os.open, folders.os.close
    held = {}

    def open_(path, *how):
        descriptor = opened(path, *how)
        held[descriptor] = Path(path)
        return descriptor

    def close(descriptor):
        held.pop(descriptor, None)
        closed(descriptor)

    def unlink(path, missing_ok=False):
        assert path not in held.values(), f"{path} is open"
        folders.os.unlink(path)

    monkeypatch.setattr(folders.os, "open", open_)
    monkeypatch.setattr(folders.os, "close", close)
    monkeypatch.setattr(Path, "unlink", unlink)
    with claimed(tmp_path):
        assert [one.name for one in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_r5_a_process_is_asked_for_without_a_signal_on_windows(monkeypatch):
    asked = []
    monkeypatch.setattr(folders.sys, "platform", "win32")
    monkeypatch.setattr(folders, "_runs_on_windows", lambda pid: asked.append(pid) or True)
    monkeypatch.setattr(folders.os, "kill", lambda *_: pytest.fail("signal 0 is Ctrl-C on Windows"))
    assert folders._runs(7)
    assert asked == [7]
