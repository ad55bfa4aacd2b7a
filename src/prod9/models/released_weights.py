"""Reads the files listed in ``models.released`` and turns them into export folders that every command takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prod9.config.load import load_config, of_class
from prod9.config.schema import MaisiControlNetConfig, MaisiDiffusionConfig, MaisiVAEConfig
from prod9.errors import CheckpointError
from prod9.models import export as exports
from prod9.models.checkpoint_file import read_checkpoint
from prod9.models.checkpoint_header import Loaded, make_header
from prod9.models.checkpoint_places import describe_input
from prod9.models.checkpoint_weights import differences
from prod9.models.factory import ModelFactory
from prod9.models.released import RELEASED, Released

_WRAPPERS = ("unet_state_dict", "controlnet_state_dict", "state_dict")


@dataclass(frozen=True)
class ReleasedWeights:
    """The content of a published file.

    Attributes:
        state: the weights, named without prefixes.
        scale_factor: of the latent, where the file has one.
        sha256: of the file.
    """

    state: dict[str, Tensor]
    scale_factor: float | None
    sha256: str


def read_released(path: Path) -> ReleasedWeights:
    """Read a raw state dict, or one under ``unet_state_dict`` or ``controlnet_state_dict``; CheckpointError."""
    content, digest = read_checkpoint(path)
    wrapped = next((name for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
    state: Mapping[str, Any] = content if wrapped is None else content[wrapped]
    tensors = {name.removeprefix("module."): v for name, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path}: expected a state dict, raw or under {' or '.join(_WRAPPERS[:2])}, got no tensors; "
            "get the file from its publisher."
        )
    scale = content.get("scale_factor") if wrapped is not None else None
    return ReleasedWeights(tensors, None if scale is None else float(scale), digest)


def build_released(entry: Released) -> nn.Module:
    """Return the network of ``entry`` on the meta device, from its shipped config."""
    config = _config(entry)
    with torch.device("meta"):
        if config.stage == "maisi_vae":
            return ModelFactory.create_autoencoder(config.model)
        if config.stage == "maisi_diffusion":
            return ModelFactory.create_diffusion(config.model, latent_channels=4)
        flow = RELEASED[str(entry.base)]
        base = of_class(_config(flow), MaisiDiffusionConfig)
        autoencoder = of_class(_config(RELEASED[str(flow.autoencoder)]), MaisiVAEConfig)
        return ModelFactory.create_controlnet(
            config.model, config.condition, base_model=base.model, autoencoder=autoencoder.model
        )


def _config(entry: Released) -> MaisiVAEConfig | MaisiDiffusionConfig | MaisiControlNetConfig:
    config = load_config(entry.config, fill_variables=False)
    return of_class(config, (MaisiVAEConfig, MaisiDiffusionConfig, MaisiControlNetConfig))


def check_released(entry: Released, weights: ReleasedWeights, path: Path) -> None:
    """Refuse weights whose names or shapes differ from the network's, naming the first that do."""
    faults = differences(build_released(entry), weights.state)
    if faults:
        raise CheckpointError(
            f"{path}: expected the {entry.tensors} tensors of {entry.name}, got others ({len(faults)} differ: "
            f"{'; '.join(faults[:3])}); name the network that the file belongs to."
        )


def import_released(
    entry: Released,
    path: Path,
    folder: Path,
    *,
    autoencoder: Loaded[Any] | None = None,
    base: Loaded[Any] | None = None,
) -> Path:
    """Check ``path`` strictly and write it to ``folder`` as an export; return ``folder``.

    The SHA-256 of the file is kept in the header, and that of the export in its manifest, so that damaged or
    exchanged weights are noticed from then on.

    Args:
        entry: the published network.
        path: the publisher's file.
        folder: of the export.
        autoencoder: the imported one that a diffusion network builds on.
        base: the imported diffusion network that a control network steers.
    """
    weights = read_released(path)
    check_released(entry, weights, path)
    config = _config(entry)
    section = config.model.model_dump(mode="json")
    architecture: dict[str, Any] = {"autoencoder": section}
    inputs: dict[str, dict[str, str]] = {}
    data = config.data.model_dump(mode="json", include={"grid", "label_map", "spacing", "intensity"})
    data["reference_affine"] = _centred_affine(data["spacing"], data["grid"])
    data["released"] = {"name": entry.name, "file": path.name, "sha256": weights.sha256}
    if config.stage == "maisi_controlnet":
        base = _required(base, entry.base, f"which {entry.name} steers", path)
        architecture = {"controlnet": section, "condition": config.condition.model_dump(mode="json")}
        architecture |= base.header["architecture"]
        inputs["diffusion"] = describe_input(base.path, base.sha256, folder)
        data["scale_factor"] = base.header["data"]["scale_factor"]
        data["schedule"] = entry.schedule
    elif config.stage == "maisi_diffusion":
        autoencoder = _required(autoencoder, entry.autoencoder, f"whose latent {entry.name} generates", path)
        architecture = {
            "diffusion": section,
            "autoencoder": autoencoder.header["architecture"]["autoencoder"],
        }
        inputs["autoencoder"] = describe_input(autoencoder.path, autoencoder.sha256, folder)
        if weights.scale_factor is None:
            raise CheckpointError(
                f"{path}: expected a scale_factor beside the weights, got none; get the publisher's own file."
            )
        data["scale_factor"] = weights.scale_factor
        data["schedule"] = entry.schedule
    split = {"train": [], "val": [], "test": []}
    header = make_header(config, architecture=architecture, step=0, split=split, inputs=inputs, data=data)
    header["config"] |= {"output_dir": "outputs", "data": header["config"]["data"] | {"root": "data"}}
    return exports.write_export(folder, dict(header), weights.state, dtype=torch.float32)


def _required(given: Loaded[Any] | None, name: str | None, why: str, path: Path) -> Loaded[Any]:
    if given is None:
        raise CheckpointError(
            f"{path}: expected the imported {name} as well, {why}, got none; import it first and name it."
        )
    return given


def _centred_affine(spacing: list[float], grid: list[int]) -> list[list[float]]:
    """Return the axis-aligned affine of a grid centred on the origin."""
    rows = [[0.0] * 4 for _ in range(4)]
    for axis, (mm, side) in enumerate(zip(spacing, grid, strict=True)):
        rows[axis][axis] = mm
        rows[axis][3] = -mm * (side - 1) / 2
    rows[3][3] = 1.0
    return rows


def name_of(path: Path) -> str | None:
    """Return the name of the published network whose file has the name of ``path``."""
    return next((entry.name for entry in RELEASED.values() if entry.file == path.name), None)
