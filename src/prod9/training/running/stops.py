"""How a run ends and goes on: the last step, signals, and a validation that is still due."""

from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from prod9.errors import TrainingError
from prod9.models.checkpoint_file import LAST
from prod9.system.stopping import Watch, take_back
from prod9.training.lightning.base import AbstractLightning
from prod9.training.running.averaging import BatchEMA
from prod9.training.running.keeping import KeepCheckpoints


class InterruptedTrainingError(TrainingError):
    """Training stopped after a signal; the exit code is the shell's for that signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopWithoutImprovement(EarlyStopping):
    """Lightning's early stopping, for metrics that are missing in some validations, or NaN.

    Neither is an improvement, NaN counts as a validation without one, and neither ends the run by itself.

    Args:
        monitor: the key of the metric.
        mode: ``min`` or ``max``.
        patience: validations without improvement that are borne.
        min_delta: the least change that is an improvement.
        weights: of the parts of the metric, where it has some.
    """

    def __init__(
        self,
        *,
        monitor: str,
        mode: str,
        patience: int,
        min_delta: float,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            monitor, min_delta, patience, mode=mode, strict=False, check_finite=False,
        )  # fmt: skip
        self.weights = dict(weights or {})

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with what the best score so far is a score of."""
        return super().state_dict() | {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, but with the patience of the config, which may have changed.

        With other weights, scores cannot be compared with the best one before, and counting begins anew.
        """
        if state_dict.get("weights", self.weights) != self.weights:
            return
        super().load_state_dict(state_dict | {"patience": self.patience})


class StopAtEnd(Callback):
    """Requests a last validation when the last step is not a multiple of ``validate_every_steps``."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Request the stop: Lightning validates before it."""
        module = cast(AbstractLightning, pl_module)
        if module.step >= module.config.training.max_steps:
            trainer.should_stop = True


class MakeUpValidation(Callback):
    """Validates before the first step where :func:`validation_is_due`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate as Lightning would have done after the step of the checkpoint."""
        module = cast(AbstractLightning, pl_module)
        if not validation_is_due(module):
            return
        connector = trainer._logger_connector
        trainer.validating, first = True, connector._first_loop_iter
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training, connector._first_loop_iter = True, first
        if module.step >= module.config.training.max_steps:
            trainer.should_stop = True


def validation_is_due(module: AbstractLightning) -> bool:
    """Return whether the step at which a run begins should have been validated and was not.

    That is a step of a resumed run, or step 0 of one that starts from trained weights (``training.validate_start``).
    """
    training, step = module.config.training, module.step
    if module.validated is None or module.validated >= step:
        return False
    return step % training.validate_every_steps == 0 or step >= training.max_steps


class StopOnSignal(Callback):
    """After a signal, or at the end of the time: finishes the step, saves, and stops. A second Ctrl-C stops at once.

    During a validation the run stops after the current batch: the trained weights are put back and saved, and a resumed
    run repeats the validation.
    """

    def __init__(self, keeper: KeepCheckpoints, watch: Watch) -> None:
        self.keeper = keeper
        self.watch = watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, which would save nothing, and finish steps from now on."""
        take_back(self.watch)
        self.watch.gentle = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop when any rank received a signal; raises InterruptedTrainingError."""
        module = cast(AbstractLightning, pl_module)
        if trainer.world_size > 1 and module.step % module.config.training.log_every_steps:
            return  # Asking the other ranks costs an exchange.
        self._stop_if_asked(trainer, module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do the same in the middle of a validation, which may take much longer than a step."""
        if self.watch.gentle:
            self._stop_if_asked(trainer, cast(AbstractLightning, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the next signal stop at once: no step is left to finish."""
        self.watch.gentle = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Go on noting signals, silently, while files are closed; a second Ctrl-C ends that too."""
        self.watch.gentle = True
        self.watch.say = lambda _: None

    def _stop_if_asked(self, trainer: Trainer, module: AbstractLightning) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.watch.asked is not None, all=False):
            return
        for callback in trainer.callbacks:  # pyrefly: ignore[missing-attribute]
            if isinstance(callback, BatchEMA):
                callback.put_back(module)
        self.keeper.save_last(trainer)
        reason = self.watch.name if self.watch.asked is not None else "a signal to another process"
        raise InterruptedTrainingError(
            f"Stopped by {reason} after step {module.step} and saved "
            f"{self.keeper.folder / LAST}; {self.watch.again} goes on from there.",
            self.watch.exit_code,
        )
