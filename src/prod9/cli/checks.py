"""What ``--check`` does, and the part of it that every run does before anything slow.

``check_inputs`` takes milliseconds and imports no torch; ``check_run`` reads every header, builds the model
without allocating it, and estimates memory and disk. Neither leaves anything behind.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prod9 import machine
from prod9.cli.inputs import Inputs, find_inputs
from prod9.devices import torch_device
from prod9.errors import ConfigError, DataError
from prod9.machine import expand
from prod9.training.config import STAGE_COMMANDS

if TYPE_CHECKING:
    from prod9.data.layouts import Case
    from prod9.training.config_schema import (
        FSQModelConfig,
        KLModelConfig,
        MaisiDiffusionConfig,
        RunConfig,
        TransformerConfig,
    )
    from prod9.training.model.checkpoint_manager import Source
    from prod9.training.resources import Resources

GIB = 1024**3
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
        from prod9.training.weights import resolve_perceptual

        resolve_perceptual(config.loss.perceptual.network)
    if writes:
        _check_output(Path(config.output_dir))
    return inputs


def check_run(config: "RunConfig", *, device: str, checkpoint: "Source | None" = None) -> dict[str, Any]:
    """Check all that can be checked without training, and return what was found as plain values.

    checkpoint: a trained model that must fit the stage. Raises the first error met; what is doubtful but
    not wrong comes under ``warnings``.
    """
    inputs = check_inputs(config)
    geometry = inputs.files or _check_headers(inputs.cases)
    parts = _split_counts(config, inputs.cases) if inputs.parts is None else inputs.parts
    chosen = torch_device(device)
    earlier = check_earlier_stages(config)
    if checkpoint is not None:
        from prod9.training.model.checkpoint_manager import CheckpointManager

        CheckpointManager.open(checkpoint, stage=config.stage)
    parameters = _build(config, *earlier)
    needs = _estimate(config, *earlier, "cuda" if chosen.type == "cuda" else "cpu")
    memory, disk = device_memory(chosen.type), _free_disk(Path(config.output_dir))
    wanted_disk = _wanted_disk(config, needs, inputs.num_volumes)
    return {
        "stage": config.stage,
        "cases": inputs.num_cases,
        "volumes": inputs.num_volumes,
        "patients": parts,
        "files": geometry,
        "grid": list(needs.grid),
        **({"tokens": list(needs.latent_grid)} if needs.tokens else {}),
        "parameters": parameters,
        "device": str(chosen),
        "memory_gib": round(needs.memory_gib, 2),
        "disk_gib": round(wanted_disk / GIB, 2),
        "warnings": _shortages(needs.memory_bytes, memory, wanted_disk, disk),
    }


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


def _check_output(path: Path) -> None:
    """Refuse an output folder that cannot be made or written, without making it."""
    path = expand(path).absolute()
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        got = f"{parent} is a file" if not parent.is_dir() else f"{parent} cannot be written"
        raise ConfigError(
            f"output_dir: expected a folder that can be written, got {path} ({got}); name another"
        )


def _check_headers(cases: "Sequence[Case]") -> dict[str, int]:
    """Read every header; refuse what is no volume and cases whose files lie on different grids."""
    import numpy as np

    from prod9.volumes import read_header

    found: Counter[str] = Counter()
    for case in cases:
        headers = [read_header(path, channel=case.channels.get(name)) for name, path in case.images.items()]
        headers += [read_header(case.seg)] if case.seg is not None else []
        first = headers[0]
        for header in headers[1:]:
            if header.shape != first.shape or not np.allclose(header.affine, first.affine, atol=1e-2):
                raise DataError(
                    f"{header.path}: expected the voxel grid of {first.path.name} {first.shape}, got "
                    f"{header.shape} or another affine; register and resample the case to one grid first"
                )
        sides = "×".join(map(str, first.shape))
        found[f"{sides} at {'×'.join(f'{mm:.2f}' for mm in first.spacing)} mm"] += len(headers)
    return dict(found.most_common())


def _split_counts(config: "RunConfig", cases: "Sequence[Case]") -> dict[str, int]:
    from prod9.data.splits import PARTS, divide

    split = divide(cases, config.data.split.kwargs())
    return {part: len(getattr(split, part)) for part in PARTS}


def check_earlier_stages(
    config: "RunConfig",
) -> "tuple[TransformerConfig | MaisiDiffusionConfig | None, FSQModelConfig | KLModelConfig | None]":
    """Refuse earlier stages that ``config`` does not fit; return the base's config and stage 1's section."""
    if config.stage == "maskgit_controlnet":
        from prod9.cli.checks_control import check_base

        return check_base(config)
    if config.stage == "maisi_controlnet":
        from prod9.cli.checks_control import check_flow_base

        return check_flow_base(config)
    if config.stage == "refiner":
        from prod9.training.lightning.translator import load_translator

        load_translator(config)
    if config.stage == "transformer" or config.stage == "maisi_diffusion":
        return None, check_upstream(config)
    return None, None


def _estimate(
    config: "RunConfig",
    base: "TransformerConfig | MaisiDiffusionConfig | None",
    autoencoder: "FSQModelConfig | KLModelConfig | None",
    device: Literal["cuda", "cpu"],
) -> "Resources":
    from prod9.training.resources import estimate
    from prod9.training.resources_controlnet import estimate_controlnet
    from prod9.training.resources_flow_controlnet import estimate_flow_controlnet
    from prod9.training.resources_refiner import estimate_refiner

    if config.stage == "maisi_controlnet":
        assert base is not None
        assert base.stage == "maisi_diffusion"
        assert autoencoder is not None
        assert autoencoder.kind == "kl"
        return estimate_flow_controlnet(config, base=base, autoencoder=autoencoder, device=device)
    if config.stage == "maskgit_controlnet":
        assert base is not None
        assert base.stage == "transformer"
        assert autoencoder is not None
        assert autoencoder.kind == "fsq"
        return estimate_controlnet(config, base=base, autoencoder=autoencoder, device=device)
    if config.stage == "refiner":
        return estimate_refiner(config, device=device)
    return estimate(config, autoencoder=autoencoder, device=device)


def check_upstream(config: "TransformerConfig | MaisiDiffusionConfig") -> "FSQModelConfig | KLModelConfig":
    """Refuse an autoencoder that ``config`` does not fit, and return its model section.

    Reads the checkpoint: raises CheckpointError when it is damaged or of another stage, ConfigError when the
    grid or the preprocessing differ from what it needs.
    """
    from prod9.training.config import config_from_dict
    from prod9.training.model.checkpoint_manager import CheckpointManager

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
    return stage1.model


def _folding(config: "TransformerConfig | MaisiDiffusionConfig") -> tuple[str, int]:
    """Return what the sides of a latent must be a multiple of, with its name."""
    if config.stage == "maisi_diffusion":
        return "the U-Net's", config.model.downsampling_factor
    return "model.patch_size", config.model.patch_size


def _build(
    config: "RunConfig",
    base: "TransformerConfig | MaisiDiffusionConfig | None",
    autoencoder: "FSQModelConfig | KLModelConfig | None",
) -> int:
    """Build the networks on the meta device, which allocates nothing, and return their parameters."""
    import torch

    from prod9.training.model.model_factory import ModelFactory

    networks: list[torch.nn.Module]
    with torch.device("meta"):
        if config.stage == "maisi_controlnet":
            assert base is not None
            assert base.stage == "maisi_diffusion"
            assert autoencoder is not None
            assert autoencoder.kind == "kl"
            networks = [
                ModelFactory.create_controlnet(
                    config.model, config.condition, base_model=base.model, autoencoder=autoencoder
                )
            ]
        elif config.stage == "maskgit_controlnet":
            assert base is not None
            assert base.stage == "transformer"
            assert autoencoder is not None
            assert autoencoder.kind == "fsq"
            decoder = ModelFactory.create_transformer(base.model, levels=autoencoder.levels)
            networks = [
                ModelFactory.create_controlnet(
                    config.model,
                    config.condition,
                    base=decoder,
                    base_model=base.model,
                    autoencoder=autoencoder,
                )
            ]
        elif config.stage == "refiner":
            networks = [ModelFactory.create_refiner(config.model)]
        elif config.stage == "maisi_diffusion":
            assert autoencoder is not None
            assert autoencoder.kind == "kl"
            channels = autoencoder.latent_channels
            networks = [ModelFactory.create_diffusion(config.model, latent_channels=channels)]
        elif config.stage == "transformer":
            assert autoencoder is not None
            assert autoencoder.kind == "fsq"
            networks = [ModelFactory.create_transformer(config.model, levels=autoencoder.levels)]
        else:
            networks = [ModelFactory.create_autoencoder(config.model)]
            if config.loss.adversarial.weight > 0:
                networks.append(ModelFactory.create_discriminator(config.loss.adversarial.discriminator))
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _wanted_disk(config: "RunConfig", needs: "Resources", volumes: int) -> int:
    """Return the bytes a run writes: checkpoints (best ones, the last and the one before) and tokens."""
    checkpoints = (config.callbacks.checkpoint.save_top_k + 2) * needs.checkpoint_bytes
    cached = volumes * 2 * math.prod(config.data.grid) if config.data.cache == "disk" else 0
    return checkpoints + volumes * needs.store_bytes_per_volume + cached


def device_memory(device: str) -> int | None:
    """Return the bytes of memory of the device that this process may use, None where the system does not say."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return machine.memory().total


def _free_disk(path: Path) -> int:
    path = expand(path).absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def _shortages(memory: int, there: int | None, disk: int, free: int) -> list[str]:
    found = []
    if there is not None and memory > there:
        found.append(
            f"memory: a step needs about {memory / GIB:.1f} GiB, the device has {there / GIB:.1f}; lower "
            "data.batch_size or data.crop_size, or set model.use_checkpointing=true"
        )
    if disk > free:
        found.append(f"disk: the run writes about {disk / GIB:.1f} GiB, {free / GIB:.1f} are free; free some")
    return found
