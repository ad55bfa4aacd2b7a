"""``--engine ray``: parts as tasks of Ray make what one run makes, also when a worker is killed."""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.test_parts import contents
from tests.harness import Workspace, run

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is an extra that is not installed here")


@needs_ray
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_whom_one_is_killed_make_what_one_run_makes(
    workspace: Workspace, tmp_path: Path
) -> None:
    def generate(out: Path, *args: object) -> list[object]:
        return [
            "prod9", "generate", "label", "-m", workspace.run2, "-l", "T1", "-l", "T2", "-n", 12, "--steps", 2,
            "--device", "cpu", "-o", out, "--json", *args,
        ]  # fmt: skip

    whole, spread, killed = tmp_path / "whole", tmp_path / "spread", list[int]()
    assert run(*generate(whole)).code == 0

    def kill() -> None:
        first = spread / "part-1-of-2"
        while not list(first.glob("*.nii.gz")):
            time.sleep(0.005)
        workers = [
            child
            for child in psutil.Process().children(recursive=True)
            if any("PartWorker" in word for word in child.cmdline())
        ]
        os.kill(workers[0].pid, signal.SIGKILL)
        killed.append(len(workers))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    ran = run(*generate(spread, "--engine", "ray", "--parts", 2))
    assert ran.code == 0, ran.err
    assert killed == [2]
    assert contents(spread) == contents(whole)
    assert len(ran.json["made"]) + ran.json["kept"] == 24
    wrong = run(*generate(tmp_path / "wrong", "--engine", "ray", "--parts", 2, "--noise", "loud"))
    assert wrong.code == 2
    assert "noise" in wrong.err


@needs_ray
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_a_store_is_filled_by_actors(workspace: Workspace, tmp_path: Path) -> None:
    def encode(name: str, *args: object) -> dict[str, object]:
        ran = run(
            "prod9", "encode", "--config", workspace.stage2, "--output-dir", tmp_path / name, "--device", "cpu",
            "--json", *args,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return ran.json

    whole = encode("whole")
    spread = encode("spread", "--engine", "ray", "--parts", 2)
    # Which volumes share a file may differ, and each file has a header.
    assert {**spread, "store": "", "bytes": 0} == {**whole, "store": "", "bytes": 0}
    assert not list((tmp_path / "spread" / "store").glob("part-*"))


def test_what_an_engine_cannot_do_is_said(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> str:
        ran = run("prod9", "generate", "masks", "--vary", workspace.cohort, "-o", tmp_path / "out", *args)
        assert ran.code in (1, 2), ran.err
        assert not (tmp_path / "out").exists()
        return " ".join(ran.err.split())

    assert "expected ray, got dask" in refused("--engine", "dask")
    assert "--parts: expected --engine ray" in refused("--parts", 2)
    assert "--address: expected --engine ray" in refused("--address", "auto")
    assert "--part: expected it without --engine" in refused("--engine", "ray", "--part", "1/2")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert "pip install 'prod9[ray]'" in refused("--engine", "ray")
