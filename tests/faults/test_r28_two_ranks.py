"""Two processes: what is shown is the first one's error and how to go on, whoever failed."""

import os
import signal
import sys
from pathlib import Path

import pytest

from prod9.cli import shared
from tests.processes import run_ranks


def rank(folder: Path, what: str) -> None:
    """Train until something happens to one of the processes after its third step."""
    from prod9.training import run
    from prod9.training.lightning.base import AbstractLightning
    from tests.training.tiny import MemoryData, autoencoder_config

    own = int(os.environ["RANK"])
    run.build_data_module = lambda config, *_, **__: MemoryData(config)  # type: ignore[assignment]
    finish = AbstractLightning.training_step

    def training_step(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        if self.step != 3:
            return
        if what == f"kill {own}":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == f"raise {own}":
            raise RuntimeError("the cause of it all")
        if what == "signal" and own == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    AbstractLightning.training_step = training_step
    config = autoencoder_config(
        folder / "data", folder / "run",
        trainer={"loggers": [], "progress": False, "accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        training={"max_steps": 40, "validate_every_steps": 40, "log_every_steps": 1},
        callbacks={"checkpoint": {"every_steps": 2}, "num_samples": 0},
    )  # fmt: skip

    def main() -> None:
        run.train(config)

    app = shared.new_app("x")
    app.command()(main)
    sys.exit(shared.run(app, ["main"]))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill 1", "raise 1", "raise 0", "signal"])
def test_r28_the_first_process_says_how_to_go_on(tmp_path, what):
    codes, (first, second) = run_ranks(rank, tmp_path, what, timeout=120)
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
