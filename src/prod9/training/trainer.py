"""The Lightning Trainer of a configuration: hardware, precision, parallel strategy, loggers."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from prod9.config.schema import RunConfig
from prod9.devices import no_such_gpu
from prod9.errors import ConfigError, MissingDependencyError
from prod9.training.callbacks import KeepCheckpoints
from prod9.training.lightning.checkpoint_io import AtomicCheckpointIO
from prod9.training.lightning.json_lines import JSONLinesLogger
from prod9.training.lightning.sharded_strategy import ShardedStrategy
from prod9.training.lightning.steady_loggers import SteadyCSVLogger, SteadyLogger

_HARMLESS = (
    # One loader process is the default for small data, and volumes are cached.
    ".*does not have many workers.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*Experiment logs directory.*exists and is not empty.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*It is recommended to use `self.log.*sync_dist=True.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*You're using the WeightAveraging callback.*",
    # Ours is the one that is meant.
    ".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",
    # Convolutions of one channel in or out have two names for one layout.
    ".*Grad strides do not match bucket view strides.*",
    # FSDP warns of changes in place to what a block returns, and nothing here makes any.
    ".*FSDP2-wrapped module .* returned a view tensor.*",
)


def build_trainer(config: RunConfig, device: str, callbacks: list[Any], loggers: list[Logger]) -> Trainer:
    """Return the Trainer of a run of one epoch.

    Args:
        config: of the run.
        device: as for :func:`prod9.training.run.train`.
        callbacks: of the run.
        loggers: of the run.
    """
    accelerator, devices = _hardware(config, device)
    use_tensor_cores(accelerator)
    with quiet():
        return _trainer(config, accelerator, devices, callbacks, loggers)


def use_tensor_cores(accelerator: str) -> None:
    """Let matrix products in float32 use TF32 on a GPU, in this process; convolutions do by themselves.

    What tokens depend on runs without it, see :func:`prod9.autoencoder.native.full_precision.full_float32`.
    """
    if accelerator == "gpu":
        torch.set_float32_matmul_precision("high")


def _trainer(
    config: RunConfig, accelerator: str, devices: Any, callbacks: list[Any], loggers: list[Logger]
) -> Trainer:
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=config.trainer.num_nodes,
        strategy=_strategy(config, accelerator, devices),
        precision=_precision(config, accelerator),
        plugins=[AtomicCheckpointIO(), *_environments()],
        max_epochs=1,
        # None: count batches over the whole run, whatever the step it starts from.
        check_val_every_n_epoch=None,
        val_check_interval=config.training.validate_every_steps,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=callbacks,
        logger=loggers or False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, KeepCheckpoints) for callback in callbacks),
        use_distributed_sampler=False,
        # Tables that a decoder caches during validation must be usable in training.
        inference_mode=False,
        # Where Lightning would look for checkpoints of its own handling of SLURM: never in the run's folder.
        default_root_dir=str(Path(config.output_dir) / "logs"),
    )


def _environments() -> list[SLURMEnvironment]:
    """Return SLURM's environment without Lightning's own requeueing, which saves where no later start reads."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []  # in this order Lightning looks for them
    return [SLURMEnvironment(auto_requeue=False)]


def _hardware(config: RunConfig, device: str) -> tuple[str, Any]:
    kind, _, index = device.partition(":")
    names = {"auto": config.trainer.accelerator, "cpu": "cpu", "cuda": "gpu", "mps": "mps"}
    if kind not in names or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(
            f"--device: expected auto, cpu, cuda, cuda:N or mps, got {device!r}; choose one of them."
        )
    accelerator = names[kind]
    if accelerator == "auto":
        accelerator = (
            "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    count = torch.cuda.device_count() if accelerator == "gpu" else 1
    if accelerator == "gpu" and (count == 0 or int(index or 0) >= count):
        raise no_such_gpu(*(("trainer.accelerator", "gpu") if device == "auto" else ("--device", device)))
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"--device: expected a Mac with MPS, got {device!r} without it; use --device cpu.")
    devices = [int(index)] if index else config.trainer.devices
    _require_devices(devices, accelerator, count)
    return accelerator, 1 if devices == "auto" and accelerator == "cpu" else devices


def _require_devices(devices: Any, accelerator: str, count: int) -> None:
    """Refuse more devices, or other ids, than there are; a CPU has processes, which have no ids (ConfigError)."""
    if devices == "auto" or (accelerator == "cpu" and isinstance(devices, int)):
        return
    if accelerator == "cpu":
        raise ConfigError(
            f"trainer.devices: expected a number of processes on the CPU, got the ids {devices}, which are for GPUs; "
            f"use {len(devices)}, or --device cuda:{devices[0]}"
        )
    wanted = max(devices) + 1 if isinstance(devices, list) else devices
    if wanted > count:
        raise ConfigError(
            f"trainer.devices: expected at most {count} of them, with ids from 0 to {count - 1}, got {devices}; use "
            "fewer, or others"
        )


def _strategy(config: RunConfig, accelerator: str, devices: Any) -> str | Strategy:
    count = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else None
    if devices == "auto":
        count = torch.cuda.device_count()
    if config.trainer.strategy == "auto" and count == 1 and config.trainer.num_nodes == 1:
        return "auto"
    backend = "nccl" if accelerator == "gpu" else "gloo"
    if config.trainer.strategy == "fsdp":
        if accelerator == "mps":
            raise ConfigError(
                "trainer.strategy: expected auto on a Mac's GPU (MPS), which is one device, got fsdp; use auto."
            )
        return ShardedStrategy(process_group_backend=backend)
    # Some parameters have no gradient in some steps: those of the discriminator before it starts, or the embedding of
    # "no condition" in a batch without dropped samples.
    return DDPStrategy(find_unused_parameters=True, process_group_backend=backend)


def _precision(config: RunConfig, accelerator: str) -> Any:
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if accelerator == "gpu" else "32-true"


def build_loggers(config: RunConfig, step: int) -> list[Logger]:
    """Return the configured loggers of a session that starts at ``step``."""
    # A session has its own folder: the CSV logger would empty that of the session before.
    root, session = Path(config.output_dir) / "logs", f"from-step-{step:06d}"
    return [SteadyLogger(_logger(name, root, session, config)) for name in config.trainer.loggers]


def _logger(name: str, root: Path, session: str, config: RunConfig) -> Logger:
    if name == "csv":
        return SteadyCSVLogger(root, name="csv", version=session)
    if name == "tensorboard":
        return TensorBoardLogger(root, name="tensorboard", version=session)
    if name == "jsonl":
        return JSONLinesLogger(root / "metrics.jsonl")
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    try:
        if name == "wandb":
            return WandbLogger(save_dir=root, name=Path(config.output_dir).name, offline=True)
        return MLFlowLogger(experiment_name=config.stage, tracking_uri=f"file:{root / 'mlflow'}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"trainer.loggers: expected the package {name}, got none installed; run `pip install {name}`, or "
            "remove it from the list."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice, which does not apply here, and the threads of loggers; errors of Lightning stay."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels, hook = [logger.level for logger in loggers], threading.excepthook
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    threading.excepthook = lambda args: None if _is_logger_thread(args.thread) else hook(args)
    try:
        with warnings.catch_warnings():
            for message in _HARMLESS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        threading.excepthook = hook


def _is_logger_thread(thread: threading.Thread | None) -> bool:
    # The logger reports its error already; the thread would print a traceback as well.
    return type(thread).__module__.startswith("tensorboard")
