"""The progress line of a training run."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from prod9.training.run import train
from prod9.training.running import progress
from prod9.training.running.progress import RunProgress


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_step_rate_time_left_and_values(terminal, make_config, memory_data, monkeypatch):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    quiet = {"loggers": [], "progress": True, "accelerator": "cpu"}
    train(make_config("transformer", "run", trainer=quiet, callbacks={"num_samples": 0}))

    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "6/6" in shown
    assert "steps/s" in shown
    assert "left" in shown
    assert "Validation at step 6 of 6: loss " in shown
    assert "guessing all tokens alike has " in shown
    assert "best so far" in shown
    assert "val/" not in shown


def test_a_resumed_run_does_not_count_the_steps_before_in_its_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = RunProgress(Console(file=io.StringIO()))
    module = SimpleNamespace(step=500)
    bar.on_train_start(SimpleNamespace(is_global_zero=True), module)  # type: ignore[arg-type]
    now[0], module.step = 110.0, 520
    assert bar._rate(module) == pytest.approx(2.0)  # type: ignore[arg-type]


def test_other_ranks_are_silent():
    text = io.StringIO()
    bar = RunProgress(Console(file=text))
    trainer, module = SimpleNamespace(is_global_zero=False), SimpleNamespace(step=1, latest={})
    bar.on_train_start(trainer, module)  # type: ignore[arg-type]
    bar.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    bar.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert text.getvalue() == ""
