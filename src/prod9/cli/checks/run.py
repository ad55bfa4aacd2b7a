"""What ``--check`` does, and the part of it that every run does before anything slow.

``check_inputs`` takes milliseconds and imports no torch; ``check_run`` reads every header, builds the model
without allocating it, and estimates memory and disk. Neither leaves anything behind.
"""

import os
from dataclasses import dataclass
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
from prod9.config.load import STAGE_COMMANDS
from prod9.devices import torch_device
from prod9.errors import ConfigError, MissingDependencyError, Prod9Error
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.config.schema import (
        FSQModelConfig,
        KLModelConfig,
        MaisiDiffusionConfig,
        RefinerConfig,
        RunConfig,
        TransformerConfig,
    )
    from prod9.data.splits import Split
    from prod9.models.checkpoint_manager import Opened, Source

What = Literal["train", "validate", "test"]
LOGGER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
STAGE1_OF: "dict[str, Literal['autoencoder', 'maisi_vae']]" = {
    "transformer": "autoencoder",
    "maisi_diffusion": "maisi_vae",
}
"""The stage 1 that a stage 2 builds on."""


def check_inputs(config: "RunConfig", *, writes: bool = True) -> Inputs:
    """Refuse missing folders, cases and weights, and an output folder that cannot be written.

    Returns what data there are. writes: whether the run writes into ``output_dir``.
    """
    inputs = find_inputs(config.data)
    if config.stage == "maskgit_controlnet" or config.stage == "refiner":
        _check_earlier("transformer", config.inputs.transformer, "prod9-train-transformer")
    elif config.stage == "maisi_controlnet":
        _check_earlier("diffusion", config.inputs.diffusion, "prod9-train-maisi-diffusion")
    elif config.stage == "transformer" or config.stage == "maisi_diffusion":
        _check_earlier("autoencoder", config.inputs.autoencoder, STAGE_COMMANDS[STAGE1_OF[config.stage]])
    else:
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
) -> dict[str, Any]:
    """Check all that can be checked without training, and return what was found as plain values.

    Raises the first error met, which is what the command would raise later. What this machine cannot hold comes under
    ``errors``, what is doubtful but not wrong under ``warnings``.

    Args:
        config: of the run.
        device: as ``--device``.
        what: which command is to follow.
        checkpoint: a trained model that must fit the stage.
        resume: as ``--resume``: None for a new run, ``auto``, or a path.
        init_from: a run or checkpoint whose weights the run starts from.
    """
    from prod9.cli.checks.data import check_data
    from prod9.cli.checks.model import build_networks, check_start, estimate_needs
    from prod9.models.run_folder import require_fresh

    inputs = check_inputs(config, writes=what == "train")
    if what == "train":
        _check_place(config)
    chosen = torch_device(device)
    earlier = check_earlier_stages(config)
    data = check_data(config, inputs, earlier.split, what)
    _check_models(config, earlier, checkpoint if checkpoint is not None else _named(resume))
    _check_trainer(config, device)
    networks = build_networks(config, earlier.base, earlier.autoencoder)
    if init_from is not None:
        check_start(config, networks, init_from)
    if what == "train" and resume is None:  # last, since it says least about the config
        require_fresh(Path(config.output_dir))
    needs = estimate_needs(
        config, earlier.base, earlier.autoencoder, "cuda" if chosen.type == "cuda" else "cpu"
    )
    memory, disk = device_memory(str(chosen)), free_disk(Path(config.output_dir))
    wanted = wanted_disk(config, needs, inputs.num_volumes) if what == "train" else 0
    return {
        "stage": config.stage,
        "cases": inputs.num_cases,
        "volumes": inputs.num_volumes,
        "patients": data.patients,
        "files": data.files,
        "grid": list(needs.grid),
        **({"tokens": list(needs.latent_grid)} if needs.tokens else {}),
        "parameters": sum(p.numel() for network in networks.values() for p in network.parameters()),
        "device": str(chosen),
        "memory_gib": round(needs.memory_gib, 2),
        "disk_gib": round(wanted / GIB, 2),
        "errors": shortages(needs.memory_bytes, memory, wanted, disk) if what == "train" else [],
        "warnings": data.warnings + check_workers(config),
    }


def _named(resume: str | None) -> str | None:
    return None if resume == "auto" else resume


def _check_place(config: "RunConfig") -> None:
    """Refuse folders that a run may not write into."""
    from prod9.training.data.module import check_paths

    check_paths(config)
    for key in ("store_dir", "cache_dir"):
        path = getattr(config.data, key, None)
        if path is not None:
            _check_output(Path(path), f"data.{key}")


def _check_models(config: "RunConfig", earlier: "Earlier", checkpoint: "Source | None") -> None:
    """Refuse checkpoints of another stage, and an earlier stage whose own autoencoder is gone."""
    from prod9.models.checkpoint_manager import CheckpointManager

    if checkpoint is not None:
        CheckpointManager.open(checkpoint, stage=config.stage)
    if earlier.opened is not None and earlier.opened.header["stage"] not in STAGE1_OF.values():
        inputs = getattr(config, "inputs", None)
        CheckpointManager.open_recorded(
            earlier.opened, "autoencoder", path=getattr(inputs, "autoencoder", None)
        )


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


def _check_earlier(name: str, path: str | None, command: str) -> None:
    if path is None:
        raise ConfigError(
            f"inputs.{name}: expected the run folder or checkpoint of the {name}, got nothing; "
            f"train it with {command} and pass --set inputs.{name}=PATH"
        )
    if not expand(path).exists():
        raise ConfigError(
            f"inputs.{name}: expected a run folder or checkpoint, got {path}, which does not exist; "
            f"train the {name} first, or correct the path"
        )


def _check_output(path: Path, key: str = "output_dir") -> None:
    """Refuse a folder to write into, named by ``key``, that cannot be made or written, without making it."""
    path = expand(path).absolute()
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        got = f"{parent} is a file" if not parent.is_dir() else f"{parent} cannot be written"
        raise ConfigError(f"{key}: expected a folder that can be written, got {path} ({got}); name another")


@dataclass(frozen=True, eq=False)
class Earlier:
    """What a run builds on. opened: the stage that ``inputs`` names. base: its config, where it is a stage 2.

    autoencoder: the model section of stage 1. All are None for what a run does not build on.
    """

    opened: "Opened | None" = None
    base: "TransformerConfig | MaisiDiffusionConfig | None" = None
    autoencoder: "FSQModelConfig | KLModelConfig | None" = None

    @property
    def split(self) -> "Split | None":
        """The patients that the earlier stage was trained on and not."""
        from prod9.data.splits import Split

        if self.opened is None or not self.opened.header["split"]:
            return None
        return Split.from_dict(self.opened.header["split"])


def check_earlier_stages(config: "RunConfig") -> Earlier:
    """Refuse earlier stages that ``config`` does not fit, and return what they are."""
    if config.stage == "maskgit_controlnet":
        from prod9.cli.checks.control import check_base

        return Earlier(*check_base(config))
    if config.stage == "maisi_controlnet":
        from prod9.cli.checks.control import check_flow_base

        return Earlier(*check_flow_base(config))
    if config.stage == "refiner":
        return Earlier(_check_translator(config))
    if config.stage == "transformer" or config.stage == "maisi_diffusion":
        opened, autoencoder = check_upstream(config)
        return Earlier(opened, None, autoencoder)
    return Earlier()


def _check_translator(config: "RefinerConfig") -> "Opened":
    from prod9.training.recipes.translator import load_translator

    translator = load_translator(config)
    fewest = translator.num_sources[0]
    if len(config.data.modalities) <= fewest:
        raise ConfigError(
            f"data.modalities: expected at least {fewest + 1}, a target and the sources that inputs.transformer "
            f"takes, got {', '.join(config.data.modalities)}; add one."
        )
    return translator.opened


def check_upstream(
    config: "TransformerConfig | MaisiDiffusionConfig",
) -> "tuple[Opened, FSQModelConfig | KLModelConfig]":
    """Refuse an autoencoder that ``config`` does not fit; return it and its model section.

    Reads the checkpoint: raises CheckpointError when it is damaged or of another stage, ConfigError when the
    grid or the preprocessing differ from what it needs.
    """
    from prod9.config.load import config_from_dict
    from prod9.models.checkpoint_manager import CheckpointManager

    stage = STAGE1_OF[config.stage]
    _check_earlier("autoencoder", config.inputs.autoencoder, STAGE_COMMANDS[stage])
    opened = CheckpointManager.open(str(config.inputs.autoencoder), stage=stage)
    stage1 = config_from_dict(opened.header["config"], source=str(opened.path))
    assert stage1.stage == "autoencoder" or stage1.stage == "maisi_vae"
    factor, (what, fold) = stage1.model.downsampling_factor, _folding(config)
    unit = factor * fold
    if any(side % unit for side in config.data.grid):
        raise ConfigError(
            f"data.grid: expected multiples of {unit}, the downsampling factor {factor} of {opened.path} times "
            f"{what} {fold}, got {list(config.data.grid)}; use "
            f"{[-(-side // unit) * unit for side in config.data.grid]}"
        )
    for key in ("spacing", "intensity"):
        ours, theirs = getattr(config.data, key), getattr(stage1.data, key)
        if ours != theirs and None not in (ours, theirs):
            raise ConfigError(
                f"data.{key}: expected that of {opened.path}, {theirs}, got {ours}; latents of volumes prepared "
                "otherwise mean something else"
            )
    if config.stage == "transformer" and config.model.kind == "decoder" and len(config.data.modalities) < 2:
        raise ConfigError(
            "data.modalities: expected at least two to translate between, got "
            f"{', '.join(config.data.modalities)}; add one, or use model.kind label_conditional."
        )
    return opened, stage1.model


def _folding(config: "TransformerConfig | MaisiDiffusionConfig") -> tuple[str, int]:
    """Return what the sides of a latent must be a multiple of, with its name."""
    if config.stage == "maisi_diffusion":
        return "the U-Net's", config.model.downsampling_factor
    return "model.patch_size", config.model.patch_size
