"""A run is killed before each system call of a validation's save: it can be resumed at every one, and nothing stays."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from prod9.models.checkpoint_file import read_checkpoint, write_checkpoint
from prod9.models.run_folder import find_checkpoints, read_index, sweep, write_index
from prod9.training.lightning.checkpoint_io import AtomicCheckpointIO
from prod9.training.running.keeping import KeepCheckpoints, settle

EVENTS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate", "shutil.copyfile"}
"""What Python reports of a process's dealings with files; fsync, close and torch's own writing lie between them."""


class Saver:
    """Saves as a trainer does: what KeepCheckpoints asks for."""

    is_global_zero = True

    def __init__(self, step: int) -> None:
        self.step = step
        self.keeper: KeepCheckpoints | None = None

    def save_checkpoint(self, path: Path) -> None:
        assert self.keeper is not None
        header = {"format": 1, "step": self.step, "validated": self.step}
        content = {"prod9": header, "w": torch.full((50,), float(self.step)), "best": self.keeper.best}
        AtomicCheckpointIO().save_checkpoint(content, path)


def save(run: Path, step: int, best: list[dict[str, object]]) -> None:
    """Save the validation of ``step``, which is the best so far and drops the one before."""
    keeper = KeepCheckpoints(folder=run / "checkpoints", monitor="val/loss", mode="min")
    entry = {"file": f"best-step={step:06d}.ckpt", "step": step, "value": 1.0 / step}
    saver = Saver(step)
    saver.keeper = keeper
    keeper.best, keeper._new_best = [entry], entry
    keeper.save_last(saver)  # type: ignore[arg-type]
    write_index(keeper.folder, keeper.best)
    for loser in best:
        for name in (loser["file"], f"{loser['file']}.sha256"):
            (keeper.folder / str(name)).unlink(missing_ok=True)


def begin(run: Path) -> list[dict[str, object]]:
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    (run / "checkpoints").mkdir()
    save(run, 1, [])
    first = read_index(run / "checkpoints")
    save(run, 2, first)
    return read_index(run / "checkpoints")


def dies(folder: Path, number: int, act: Callable[[], None]) -> bool:
    """Let a forked process ``act`` and die before its call ``number`` in ``folder``; tell whether it came to that."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal calls
            if event in EVENTS and str(folder) in str(args):
                if calls == number:
                    os._exit(9)
                calls += 1

        sys.addaudithook(count)
        try:
            act()
            os._exit(0)
        finally:
            os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("links", [True, False])
def test_r25_resumable_at_every_call_and_nothing_stays(tmp_path, monkeypatch, links):
    run, number = tmp_path / "run", 0
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    while True:
        best = begin(run)
        if not dies(run, number, partial(save, run, 3, best)):
            break
        folder = run / "checkpoints"
        last = find_checkpoints(run)[0]
        content, _ = read_checkpoint(last)
        step = content["prod9"]["step"]
        assert step in (2, 3)
        assert content["w"].eq(step).all()
        chosen = find_checkpoints(run, prefer="best")[0]
        assert read_checkpoint(chosen)[0]["prod9"]["step"] in (2, 3)

        sweep(run)
        there = [entry for entry in content["best"] if (folder / entry["file"]).is_file()]
        assert there, "the ranking of the checkpoint names files that exist"
        settle(folder, there)
        names = {path.name for path in folder.iterdir()}
        known = {there[0]["file"], "best.json", "last.ckpt", "previous.ckpt"}
        assert {name.removesuffix(".sha256") for name in names} <= known
        assert all((folder / name.removesuffix(".sha256")).exists() for name in names)

        save(run, 4, read_index(folder))
        assert read_checkpoint(folder / "last.ckpt")[0]["prod9"]["step"] == 4
        assert [entry["step"] for entry in json.loads((folder / "best.json").read_text())] == [4]
        number += 1
    assert number >= (20 if links else 15)


def test_r25_a_write_is_old_or_new_at_every_call(tmp_path):
    """One file alone, with the one before kept, as a save on the configured steps does."""
    path, number, killed = tmp_path / "last.ckpt", 0, True
    third = partial(write_checkpoint, {"prod9": {"step": 3}, "step": 3}, path, keep_previous=True)
    while killed:
        for left in tmp_path.iterdir():
            left.unlink()
        for step in (1, 2):
            write_checkpoint({"prod9": {"step": step}, "step": step}, path, keep_previous=True)
        killed = dies(tmp_path, number, third)
        assert read_checkpoint(find_checkpoints(tmp_path)[0])[0]["step"] in ((2, 3) if killed else (3,))
        number += 1
    assert number > 8
