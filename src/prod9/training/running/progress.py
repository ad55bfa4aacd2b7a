"""Progress of a run: steps, rate, time left, latest values; without a terminal, a line every 30 seconds."""

import math
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prod9.models.run_folder import peak_memory_gib
from prod9.system.terminal import PlainColumn
from prod9.system.terminal import PlainConsole as Console
from prod9.system.verbosity import is_verbose
from prod9.system.wording import duration
from prod9.training.lightning.base import AbstractLightning
from prod9.training.recipes.headline import Headline
from prod9.training.running.keeping import KeepCheckpoints

PLAIN_INTERVAL_S = 30.0
"""Seconds between lines in a log file."""
FIRST_PLAIN_S = 5.0
"""Seconds of steps before the first of them, which tells how long the run will take."""


class RunProgress(Callback):
    """A Rich bar on a terminal, plain lines elsewhere, and one line per validation; only the first rank prints.

    Args:
        keeper: knows the best checkpoints so far; called after this one.
        console: where it prints; None for the stream of errors.
    """

    def __init__(self, keeper: KeepCheckpoints, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._keeper = keeper
        self.values: dict[str, float] = {}
        self._bar: Progress | None = None
        self._task: Any = None
        self._started = self._printed = time.monotonic()
        self._first_step = 0
        self._told_memory = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the step that the run resumes from."""
        if not trainer.is_global_zero:
            return
        module = cast(AbstractLightning, pl_module)
        self._started = time.monotonic()
        self._printed = self._started - max(PLAIN_INTERVAL_S - FIRST_PLAIN_S, 0.0)
        self._first_step = module.step
        if self.console.is_terminal:
            self._bar = Progress(
                PlainColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                PlainColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                PlainColumn("left"),
                TimeRemainingColumn(),
                PlainColumn("{task.fields[values]}"),
                console=self.console,
                refresh_per_second=4,
            )
            total = module.config.training.max_steps
            self._task = self._bar.add_task(
                f"Training {module.config.stage}", total=total, completed=module.step, rate="", values=""
            )
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by one step."""
        if not trainer.is_global_zero:
            return
        module = cast(AbstractLightning, pl_module)
        self.values |= module.latest
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=module.step,
                rate=f"{self._rate(module):.2f} steps/s",
                values=self._text(),
            )
        elif time.monotonic() - self._printed > PLAIN_INTERVAL_S:
            self._print(module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in one line what was measured, and after ``--verbose`` every value."""
        if not trainer.is_global_zero or trainer.state.fn != TrainerFn.FITTING:
            return
        module = cast(AbstractLightning, pl_module)
        measured = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        self._tell(module, measured)
        if is_verbose():
            for name, value in sorted(measured.items()):
                self.console.print(f"  {name:<28} {value:.4f}")

    def _tell(self, module: AbstractLightning, measured: dict[str, float]) -> None:
        """Print the headline of a validation."""
        headline, total = module.recipe.headline, module.config.training.max_steps
        line = headline.sentence(
            measured, constants=module.recipe.yardsticks(), standing=self._standing(measured, headline)
        )
        if line:
            self.console.print(f"Validation at step {module.step} of {total}: {line}.")

    def _standing(self, measured: Mapping[str, float], headline: Headline) -> str:
        """Return how a validation compares with those before, by the metric that picks the checkpoints."""
        keeper = self._keeper
        value = measured.get(keeper.monitor, math.nan)
        if not keeper.best or not math.isfinite(value):
            return ""
        best = keeper.best[0]
        better = value > best["value"] if keeper.mode == "max" else value < best["value"]
        name = keeper.monitor.removeprefix("val/")
        if name != headline.metric:
            return (
                f"the best so far by {name}"
                if better
                else f"the best so far by {name} was step {best['step']}"
            )
        old = f"{best['value']:.{headline.digits}f}"
        return f"the best so far, before {old}" if better else f"best so far {old} at step {best['step']}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message is readable."""
        self._stop()

    def _rate(self, module: AbstractLightning) -> float:
        return (module.step - self._first_step) / max(time.monotonic() - self._started, 1e-6)

    def _text(self) -> str:
        loss = self.values.get("train/total")
        return "" if loss is None else f"loss {loss:.4g}"

    def _print(self, module: AbstractLightning) -> None:
        self._printed = time.monotonic()
        total, rate = module.config.training.max_steps, self._rate(module)
        left = duration((total - module.step) / rate) if rate else "unknown time"
        parts = (
            f"step {module.step}/{total}",
            f"{rate:.2f} steps/s",
            f"{left} left",
            self._text(),
            self._memory(module),
        )
        self.console.print(f"{module.config.stage}: " + ", ".join(part for part in parts if part))

    def _memory(self, module: AbstractLightning) -> str:
        """Return, once, the most memory that was held so far."""
        if self._told_memory:
            return ""
        self._told_memory = True
        device = module.device
        if device.type == "cuda":
            return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of memory at the peak so far"
        return f"{peak_memory_gib():.1f} GiB of memory at the peak so far"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
