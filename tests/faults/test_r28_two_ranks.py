"""Two processes: what is shown is the first one's error and how to go on, whoever failed."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.training.test_two_ranks import ROOT, free_port

_SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from prod9.cli import shared
from prod9.training import run
from prod9.training.lightning.base import AbstractLightning
from tests.training.tiny import MemoryData, autoencoder_config

torch.set_num_threads(1)
folder, what, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
run.build_data_module = lambda config, *_, **__: MemoryData(config)
finish = AbstractLightning.training_step

def training_step(self, batch, batch_idx):
    finish(self, batch, batch_idx)
    if self.step == 3 and what.startswith("kill") and rank == int(what[-1]):
        os.kill(os.getpid(), signal.SIGKILL)
    if self.step == 3 and what.startswith("raise") and rank == int(what[-1]):
        raise RuntimeError("the cause of it all")
    if self.step == 3 and what == "signal" and rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)

AbstractLightning.training_step = training_step
config = autoencoder_config(
    folder / "data", folder / "run",
    trainer={"loggers": [], "progress": False, "accelerator": "cpu", "devices": 2, "strategy": "ddp"},
    training={"max_steps": 40, "validate_every_steps": 40, "log_every_steps": 1},
    callbacks={"checkpoint": {"every_steps": 2}, "num_samples": 0},
)

def main():
    run.train(config)

app = shared.new_app("x")
app.command()(main)
sys.exit(shared.run(app, ["main"]))
"""


def two(folder: Path, what: str) -> tuple[list[int], list[str]]:
    script = folder / "script.py"
    script.write_text(_SCRIPT)
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
    }  # fmt: skip
    with ExitStack() as stack:
        children, logs = [], []
        for rank in "01":
            log = stack.enter_context((folder / f"rank-{rank}.log").open("w+"))
            env = shared | {"RANK": rank, "LOCAL_RANK": rank}
            command = [sys.executable, str(script), str(folder), what]
            child = stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
            stack.callback(child.kill)
            children.append(child)
            logs.append(Path(log.name))
        codes = [child.wait(timeout=120) for child in children]
    return codes, [log.read_text() for log in logs]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill 1", "raise 1", "raise 0", "signal"])
def test_r28_the_first_process_says_how_to_go_on(tmp_path, what):
    codes, (first, second) = two(tmp_path, what)
    both = first + second
    assert "GLHF" not in both
    assert "Traceback" not in both
    assert "strides" not in both
    assert len([line for line in first.splitlines() if line.startswith("Error:")]) <= 1
    if what == "signal":
        assert codes == [138, 138] or codes == [130, 138]
        assert "after step 3 and saved" in first
        assert not second.strip(), second
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
        return
    assert all(code != 0 for code in codes)
    if what == "raise 0":
        assert "the cause of it all" in first
        assert not second.strip(), second
    else:
        assert "Another process of this run ended" in first
        assert "last.ckpt" in first
        assert "--resume" in first
    if what == "raise 1":
        assert "Process 1 of 2: the cause of it all" in second
