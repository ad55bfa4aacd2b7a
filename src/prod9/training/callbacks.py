"""What happens around training steps: checkpoints, early stopping, averaging, pictures, progress, signals.

All callbacks count training batches (``AbstractLightning.step``). ``build_callbacks`` puts them in the only
order that works: pictures are made from averaged weights, checkpoints hold the weights that are trained.
"""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from prod9.config.data import DataConfig, MedMNIST3DDataConfig
from prod9.config.schema import RunConfig
from prod9.measures.montage import Cell, write_montage
from prod9.measures.slices import View
from prod9.system.stopping import Watch
from prod9.training.lightning.base import AbstractLightning
from prod9.training.recipes.monitor import monitor_of
from prod9.training.running.averaging import BatchEMA
from prod9.training.running.keeping import KeepCheckpoints as KeepCheckpoints
from prod9.training.running.progress import RunProgress
from prod9.training.running.stops import InterruptedTrainingError as InterruptedTrainingError
from prod9.training.running.stops import MakeUpValidation, StopAtEnd, StopOnSignal, StopWithoutImprovement


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
    """Writes ``step-….png`` at every validation: samples of the network in three planes.

    It stands before weight averaging in the list, so that its hook runs while the averaged weights are in place.
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
                [[Cell(panel.title, panel.data) for panel in row] for row in rows],
                title=f"{module.config.stage}, step {module.step}",
                view=_view(module.config.data),
            )


def _view(data: DataConfig | MedMNIST3DDataConfig) -> View | None:
    """Return how volumes are drawn; None for MedMNIST3D, whose axes are those of no patient."""
    return View(spacing=data.spacing) if data.kind == "brats" else None


def _early_step(config: RunConfig) -> int | None:
    share = config.callbacks.checkpoint.keep_early
    return None if share is None else max(1, round(share * config.training.max_steps))


def build_callbacks(
    config: RunConfig, module: AbstractLightning, *, watch: Watch | None = None, tidies: bool = False
) -> list[Callback]:
    """Return the callbacks of a training run, in their order.

    Raises ConfigError for a metric to pick checkpoints by that no validation measures.

    Args:
        config: of the run.
        module: its adapter.
        watch: notes the signals after which the run stops.
        tidies: see :class:`KeepCheckpoints`.
    """
    output_dir, section = Path(config.output_dir), config.callbacks
    monitor, mode = monitor_of(config)
    weights = section.combined_metric.kwargs() if monitor == "val/combined_metric" else None
    keeper = KeepCheckpoints(
        folder=output_dir / "checkpoints",
        monitor=monitor,
        mode=mode,
        save_top_k=section.checkpoint.save_top_k,
        every_steps=section.checkpoint.every_steps,
        early_step=_early_step(config),
        tidies=tidies,
        weights=weights,
    )
    callbacks: list[Callback] = []
    if section.num_samples:
        callbacks.append(SampleImages(folder=output_dir / "samples", num_samples=section.num_samples))
    if config.training.ema is not None:
        callbacks.append(BatchEMA(**config.training.ema.kwargs()))
    if section.lr_monitor:
        callbacks.append(LearningRateMonitor())
    if section.early_stopping is not None:
        callbacks.append(
            StopWithoutImprovement(
                monitor=monitor, mode=mode, weights=weights, **section.early_stopping.kwargs()
            )
        )
    if config.trainer.progress:
        callbacks.append(RunProgress(keeper))
    return [*callbacks, StopAtEnd(), StopOnSignal(keeper, watch or Watch()), keeper, MakeUpValidation()]
