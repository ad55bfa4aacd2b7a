"""The progress line of a training run."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from prod9.training.recipes.autoencoders import FSQRecipe
from prod9.training.run import train
from prod9.training.running import progress
from prod9.training.running.progress import RunProgress

KEEPER: Any = SimpleNamespace(monitor="val/combined_metric", mode="max", best=[])


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
    bar = RunProgress(KEEPER, Console(file=io.StringIO()))
    module = SimpleNamespace(step=500)
    bar.on_train_start(SimpleNamespace(is_global_zero=True), module)  # type: ignore[arg-type]
    now[0], module.step = 110.0, 520
    assert bar._rate(module) == pytest.approx(2.0)  # type: ignore[arg-type]


def test_other_ranks_are_silent():
    text = io.StringIO()
    bar = RunProgress(KEEPER, Console(file=text))
    trainer, module = SimpleNamespace(is_global_zero=False), SimpleNamespace(step=1, latest={})
    bar.on_train_start(trainer, module)  # type: ignore[arg-type]
    bar.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    bar.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert text.getvalue() == ""


@pytest.mark.parametrize(
    ("monitor", "mode", "value", "said"),
    [
        ("val/psnr_brain", "max", 22.0, "the best so far, before 21.0"),
        # What is shown rose, and yet the older weights are kept.
        ("val/combined_metric", "max", 20.0, "the best so far by combined_metric was step 4"),
        ("val/combined_metric", "max", 21.5, "the best so far by combined_metric"),
        ("val/l1", "min", 20.0, "the best so far by l1"),
        ("val/l1", "min", 21.5, "the best so far by l1 was step 4"),
    ],
)
def test_the_best_is_what_checkpoints_are_picked_by(monitor, mode, value, said):
    keeper: Any = SimpleNamespace(monitor=monitor, mode=mode, best=[{"step": 4, "value": 21.0}])
    text = io.StringIO()
    bar = RunProgress(keeper, Console(file=text, width=300))
    recipe = SimpleNamespace(headline=FSQRecipe.headline, yardsticks=dict)
    module: Any = SimpleNamespace(
        step=8, recipe=recipe, config=SimpleNamespace(training=SimpleNamespace(max_steps=8))
    )
    bar._tell(module, {monitor: value, "val/psnr_brain": 22.0})
    assert text.getvalue().rstrip().endswith(f"22.0 dB inside the brain (PSNR), {said}.")
