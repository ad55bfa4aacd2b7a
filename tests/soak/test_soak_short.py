"""Half a minute of the soak: a few kills of the quick jobs, and some dozen inputs for each reader of checkpoints."""

import time
from pathlib import Path

import pytest

from tests.processes import run
from tests.soak.__main__ import Record
from tests.soak.fuzz import run_reader
from tests.soak.jobs import STAGES, jobs, prepare
from tests.soak.kills import run_kills

JOBS = ("train stage1", "train stage2", "encode", "generate", "encode parts", "generate parts")


def _kill(folder: Path) -> None:
    for name in list(STAGES):
        if name not in ("stage1", "stage2"):
            del STAGES[name]
    prepare(folder / "base")
    chosen = [job for job in jobs(folder / "base") if job.name in JOBS]
    keep = Record(folder / "done.jsonl").note("episode")
    run_kills(chosen, folder, wanted=6, done=[], keep=keep, ends=time.monotonic() + 120, each=1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kill in a process of its own: it is forked from, and must not have trained in this one."""
    folder = tmp_path_factory.mktemp("soak")
    run(_kill, folder, log=folder / "log.txt", timeout=280)
    return folder


@pytest.mark.slow
def test_kills_cost_nothing(killed: Path) -> None:
    counts = Record(killed / "done.jsonl").counts()
    assert counts["kills"] >= 3
    assert not counts["faults"], counts["episodes"]


# The readers that this suite answers for; `make soak` feeds all of them.
CHECKED = ["config YAML", "--set", "checkpoint bytes", "checkpoint header", "export", "store", "lock"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_changed_files_give_errors_of_ours(killed: Path, tmp_path: Path, name: str) -> None:
    from tests.soak.readers import readers

    reader = next(reader for reader in readers(killed / "base") if reader.name == name)
    record = Record(tmp_path / "done.jsonl")
    run_reader(reader, tmp_path / "in", wanted=50, done=0, keep=record.note("inputs"), ends=float("inf"))
    counts = record.counts()
    assert counts["inputs"] == 50
    assert not counts["faults"], [fault for entry in record.entries for fault in entry["faults"]]
    assert counts["readers"][name]["refused"] > 0


def test_the_soak_covers_every_stage() -> None:
    from prod9.stages import STAGES as KNOWN

    assert {stage for _, stage, _ in STAGES.values()} == set(KNOWN)
