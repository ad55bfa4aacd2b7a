"""What happens around training steps: checkpoints, early stopping, averaging, pictures, progress, signals.

Everything counts in ``AbstractLightning.step``, training batches. ``build_callbacks`` puts them in the one
order that works: pictures see averaged weights, checkpoints see the weights that train.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from prod9.errors import ConfigError, TrainingError
from prod9.training.config_schema import RunConfig
from prod9.training.lightning.base import AbstractLightning
from prod9.training.lightning.sharded_strategy import ShardedStrategy
from prod9.training.model.checkpoint_file import LAST, remove_checkpoint, sidecar
from prod9.training.model.checkpoint_places import write_index
from prod9.training.montage import write_montage
from prod9.training.progress import RunProgress
from prod9.training.sharding import reshard

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedTrainingError(TrainingError):
    """Training was asked to stop and did, after saving; the exit code is the shell's for that signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class KeepCheckpoints(Checkpoint):
    """Keeps ``last.ckpt``, the one before it, and the best ``save_top_k`` by a monitored metric.

    Saves after every validation, and every ``every_steps`` steps where that is set. ``best.json`` lists the
    best ones, best first.
    """

    def __init__(
        self, *, folder: Path, monitor: str, mode: str, save_top_k: int = 1, every_steps: int | None = None
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self.every_steps = every_steps
        self.best: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last`` on the configured steps."""
        if self.every_steps and cast(AbstractLightning, pl_module).step % self.every_steps == 0:
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last``, and keep it if it is among the best. Averaged weights are swapped out by now."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        step = cast(AbstractLightning, pl_module).step
        entry = {"file": f"best-step={step:06d}.ckpt", "step": step, "value": self._value(trainer)}
        ranked = sorted([*self.best, entry], key=lambda e: e["value"], reverse=self.mode == "max")
        dropped, self.best = ranked[self.save_top_k :], ranked[: self.save_top_k]
        self.save_last(trainer)
        if trainer.is_global_zero:
            self._keep_best(entry, dropped)
        # No rank may go on to read what the first is still renaming.
        trainer.strategy.barrier("KeepCheckpoints")

    def _keep_best(self, entry: dict[str, Any], dropped: list[dict[str, Any]]) -> None:
        if entry in self.best:
            _duplicate(self.folder / LAST, self.folder / entry["file"])
        write_index(self.folder, self.best)
        for loser in dropped:
            remove_checkpoint(self.folder / loser["file"])

    def save_last(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` on all ranks' behalf."""
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """Return the ranking, so that a resumed run goes on comparing."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the ranking of files that still exist."""
        self.best = [entry for entry in state_dict["best"] if (self.folder / entry["file"]).is_file()]

    def _value(self, trainer: Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = ", ".join(sorted(name for name in metrics if "/" in name))
            raise ConfigError(
                f"callbacks.checkpoint.monitor: expected one of {names}, got {self.monitor!r}; choose one."
            )
        return float(metrics[self.monitor])


class BatchEMA(EMAWeightAveraging):
    """Lightning's weight averaging, once a training batch, of parameters only.

    Buffers are copied: averaging integer ones turns a level of 6 into 5. Until ``start_step`` the average
    follows the weights, or validation would look at an untrained network.
    """

    def __init__(self, *, decay: float, start_step: int) -> None:
        super().__init__(use_buffers=False, decay=decay)
        self.start_step = start_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shard the average like the weights, which were sharded since it was copied from them."""
        assert self._average_model is not None
        if isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.shard(cast(AbstractLightning, self._average_model.module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after every training batch, however many optimizers stepped."""
        average = self._average_model
        assert average is not None
        average.update_parameters(pl_module)
        if cast(AbstractLightning, pl_module).step < self.start_step:
            # A count of zero makes the next update a copy.
            average.n_averaged.zero_()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the only epoch ends with the run, and its last batch was averaged."""

    def _swap_models(self, pl_module: LightningModule) -> None:
        # The network that has just been validated may still hold whole weights, the average never does.
        reshard(pl_module)
        super()._swap_models(pl_module)


class LearningRateMonitor(Callback):
    """Logs the learning rate of every optimizer as ``lr/<network>``."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log on the steps on which losses are logged."""
        module = cast(AbstractLightning, pl_module)
        if module.step % module.config.training.log_every_steps:
            return
        rates = {
            f"lr/{name}": float(optimizer.param_groups[0]["lr"])
            for name, optimizer in zip(module.networks(), trainer.optimizers, strict=True)
        }
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=module.step)


class SampleImages(Callback):
    """Writes ``step-….png`` at every validation: what the network makes now, in three planes.

    Comes before weight averaging in the list, so that its hook runs while the averaged weights are in place.
    """

    def __init__(self, *, folder: Path, num_samples: int) -> None:
        self.folder = folder
        self.num_samples = num_samples

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the adapter sample, on all ranks since it may log, and write the picture on the first."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        module = cast(AbstractLightning, pl_module)
        # Hooks of callbacks run outside the precision that steps run in.
        with trainer.precision_plugin.forward_context():
            rows = module.sample_validation(self.num_samples)
        if rows and trainer.is_global_zero:
            write_montage(
                self.folder / f"step-{module.step:06d}.png",
                [[(panel.title, panel.data) for panel in row] for row in rows],
                title=f"{module.config.stage}, step {module.step}",
            )


class StopAtEnd(Callback):
    """Asks for a last validation when the last step is not a multiple of ``validate_every_steps``."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning validates before it stops on request."""
        module = cast(AbstractLightning, pl_module)
        if module.step >= module.config.training.max_steps:
            trainer.should_stop = True


class StopOnSignal(Callback):
    """Ctrl-C or SIGTERM: finish the step, save, say how to go on. A second Ctrl-C stops at once.

    Never saves in the middle of a validation, where averaged weights are swapped in; the signal only sets a
    flag that is read when a batch ends.
    """

    def __init__(self, keeper: KeepCheckpoints, say: Callable[[str], None]) -> None:
        self.keeper = keeper
        self.say = say
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would save nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop when a signal came in on any rank; raises InterruptedTrainingError."""
        module = cast(AbstractLightning, pl_module)
        if trainer.world_size > 1 and module.step % module.config.training.log_every_steps:
            return  # Asking the other ranks costs an exchange.
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        self.keeper.save_last(trainer)
        signum = self.received or signal.SIGTERM
        raise InterruptedTrainingError(
            f"Stopped by {signal.Signals(signum).name} after step {module.step} and saved "
            f"{self.keeper.folder / LAST}; the same command with --resume goes on from there.",
            signum,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        self.say("Stopping at the end of this step and saving; Ctrl-C again stops at once, without saving.")

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def build_callbacks(
    config: RunConfig, module: AbstractLightning, *, say: Callable[[str], None] = print
) -> list[Callback]:
    """Return the callbacks of a training run, in their order; ``say`` prints a line to the user."""
    output_dir, section = Path(config.output_dir), config.callbacks
    monitor = section.checkpoint.monitor or module.monitor[0]
    mode = section.checkpoint.mode or module.monitor[1]
    keeper = KeepCheckpoints(
        folder=output_dir / "checkpoints",
        monitor=monitor,
        mode=mode,
        save_top_k=section.checkpoint.save_top_k,
        every_steps=section.checkpoint.every_steps,
    )
    callbacks: list[Callback] = []
    if section.num_samples:
        callbacks.append(SampleImages(folder=output_dir / "samples", num_samples=section.num_samples))
    if config.training.ema is not None:
        callbacks.append(BatchEMA(**config.training.ema.kwargs()))
    if section.lr_monitor:
        callbacks.append(LearningRateMonitor())
    if section.early_stopping is not None:
        callbacks.append(EarlyStopping(monitor=monitor, mode=mode, **section.early_stopping.kwargs()))
    if config.trainer.progress:
        callbacks.append(RunProgress())
    return [*callbacks, StopAtEnd(), StopOnSignal(keeper, say), keeper]


def _duplicate(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``: checkpoints are replaced, never changed in place."""
    remove_checkpoint(target)
    try:
        os.link(source, target)
    except OSError:
        # Some file systems know no hard links.
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    digest = sidecar(source).read_text(encoding="ascii").split()[0]
    sidecar(target).write_text(f"{digest}  {target.name}\n", encoding="ascii")
