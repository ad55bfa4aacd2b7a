"""``--check``, and the part of it that every run does before anything slow.

``check_inputs`` takes milliseconds and imports no torch; ``check_run`` reads every header, builds the model
without allocating it, and estimates memory and disk. Neither writes anything.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prod9.cli.checks.resources import (
    GIB,
    check_workers,
    device_memory,
    free_disk,
    shortages,
    wanted_disk,
)
from prod9.cli.inputs import Inputs, find_inputs
from prod9.devices import torch_device
from prod9.errors import ConfigError, MissingDependencyError, Prod9Error
from prod9.models.named.find import located
from prod9.stages import STAGES
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.cli.checks.bases import Bases
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source

What = Literal["train", "validate", "test"]
LOGGER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def check_inputs(config: "RunConfig", *, writes: bool = True) -> Inputs:
    """Refuse missing folders, cases and weights, and an output folder that cannot be written; return the data found.

    writes: whether the run writes into ``output_dir``.
    """
    inputs, stage = find_inputs(config.data), STAGES[config.stage]
    if stage.base_key is not None:
        command = STAGES[stage.bases[stage.base_key]].command
        _check_base(stage.base_key, config.base_path(stage.base_key), command)
    if config.stage == "autoencoder" or config.stage == "maisi_vae":
        from prod9.measures.weights import resolve_perceptual

        resolve_perceptual(config.loss.perceptual.network)
    if writes:
        _check_output(Path(config.output_dir))
    return inputs


def check_run(
    config: "RunConfig",
    *,
    device: str,
    what: What = "train",
    checkpoint: "Source | None" = None,
    resume: str | None = None,
    init_from: str | None = None,
    calibrate: bool = True,
) -> dict[str, Any]:
    """Check all that can be checked without training, and return what was found as plain values.

    Raises the first error met, which the command would raise later. What this machine cannot hold is listed under
    ``errors``, what is doubtful but not wrong under ``warnings``.

    Args:
        config: of the run.
        device: as ``--device``.
        what: which command is to follow.
        checkpoint: a trained model that must fit the stage.
        resume: as ``--resume``: None for a new run, ``auto``, or a path.
        init_from: a run or checkpoint whose weights the run starts from.
        calibrate: measure a few steps for the time that the run takes; False estimates it.
    """
    from prod9.cli.checks.bases import check_bases
    from prod9.cli.checks.data import check_data
    from prod9.cli.checks.model import check_start
    from prod9.models.run_folder import require_fresh
    from prod9.training.recipes.monitor import monitor_of

    if what == "train":
        monitor_of(config)
    inputs = check_inputs(config, writes=what == "train")
    if what == "train":
        _check_place(config)
    chosen = torch_device(device)
    bases = check_bases(config)
    data = check_data(config, inputs, bases.split, what)
    resumed = None if resume == "auto" else resume
    _check_models(config, bases, checkpoint if checkpoint is not None else resumed)
    _check_trainer(config, device)
    needs = bases.needs("cuda" if chosen.type == "cuda" else "cpu")
    if what == "train" and resume is None:
        config.require_start(init_from)
    if init_from is not None:
        check_start(config, bases.networks(), init_from)
    elif what == "train" and resume is None and config.stage == "maisi_diffusion" and config.distillation:
        from prod9.training.recipes.distilled import no_teacher

        raise no_teacher()
    if what == "train" and resume is None:  # last, since it says least about the config
        require_fresh(Path(config.output_dir))
    memory, disk = device_memory(str(chosen)), free_disk(Path(config.output_dir))
    wanted = wanted_disk(config, needs, inputs.num_volumes) if what == "train" else 0
    errors = shortages(needs.memory_bytes, memory, wanted, disk) if what == "train" else []
    told: dict[str, Any] = {}
    if what == "train":
        from prod9.cli.checks.cost import cost_of

        fits = memory is None or needs.memory_bytes <= memory
        cost = cost_of(
            config, needs, bases.autoencoder, device=chosen, fits=fits, measures=calibrate and not errors
        )
        told["time"] = cost.to_dict()
    return {
        "stage": config.stage,
        "cases": inputs.num_cases,
        "volumes": inputs.num_volumes,
        "patients": data.patients,
        "files": data.files,
        "grid": list(needs.grid),
        **({"tokens": list(needs.latent_grid)} if needs.tokens else {}),
        "parameters": needs.parameters,
        "device": str(chosen),
        "memory_gib": round(needs.memory_gib, 2),
        "disk_gib": round(wanted / GIB, 2),
        **told,
        "errors": errors,
        "warnings": data.warnings + check_workers(config),
    }


def _check_place(config: "RunConfig") -> None:
    """Refuse folders that a run may not write into."""
    from prod9.training.data.module import check_paths

    check_paths(config)
    for key in ("store_dir", "cache_dir"):
        path = getattr(config.data, key, None)
        if path is not None:
            _check_output(Path(path), f"data.{key}")


def _check_models(config: "RunConfig", bases: "Bases[Any]", checkpoint: "Source | None") -> None:
    """Refuse checkpoints of another stage, and a base whose own autoencoder is gone."""
    from prod9.models.checkpoint_manager import CheckpointManager

    if checkpoint is not None:
        CheckpointManager.open(checkpoint, stage=config.stage)
    if bases.opened is not None and STAGES[bases.opened.header["stage"]].bases:
        CheckpointManager.open_recorded(bases.opened, "autoencoder", path=config.base_path("autoencoder"))


def _check_trainer(config: "RunConfig", device: str) -> None:
    """Refuse devices, strategies, precisions and loggers that this machine does not have."""
    from prod9.training.trainer import build_trainer

    for name in config.trainer.loggers:
        package = LOGGER_PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            raise MissingDependencyError(
                f"trainer.loggers: expected the package {package}, got none installed; run `pip install {package}`, or "
                "remove it from the list."
            )
    try:
        build_trainer(config, device, [], [])
    except Prod9Error:
        raise
    except Exception as error:
        raise ConfigError(
            f"trainer: expected devices, a strategy and a precision that this machine has, got {error}; change "
            "trainer.devices, trainer.strategy or trainer.precision."
        ) from error


def _check_base(name: str, path: str | None, command: str) -> None:
    if path is None:
        raise ConfigError(
            f"inputs.{name}: expected the run folder or checkpoint of the {name}, got nothing; "
            f"train it with {command} and pass --set inputs.{name}=PATH"
        )
    if not located(path).exists():
        raise ConfigError(
            f"inputs.{name}: expected a run folder or checkpoint, got {path}, which does not exist; "
            f"train the {name} first, or correct the path"
        )


def _check_output(path: Path, key: str = "output_dir") -> None:
    """Refuse a folder, named by ``key``, that cannot be made or written; it is not made."""
    path = expand(path).absolute()
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        got = f"{parent} is a file" if not parent.is_dir() else f"{parent} cannot be written"
        raise ConfigError(f"{key}: expected a folder that can be written, got {path} ({got}); name another")
