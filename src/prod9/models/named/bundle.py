"""MONAI Bundles: a folder with an export, and the config by which ``python -m monai.bundle run`` uses it.

::

    configs/metadata.json    what the bundle is, in MONAI's form
    configs/inference.json   calls ``prod9.load``
    docs/README.md           the model card
    models/                  the export
"""

import json
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prod9.errors import ConfigError
from prod9.files import atomic_write
from prod9.json_files import write_json
from prod9.stages import STAGES

MODELS = "models"
"""Folder of the export within a bundle."""
CONFIG = "configs/inference.json"


def write_bundle(folder: Path, header: dict[str, Any]) -> None:
    """Write configs and card beside the export that ``folder/models`` holds; header: of that export.

    Raises ConfigError for a model that makes no volumes by itself.
    """
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "docs").mkdir(exist_ok=True)
    write_json(folder / CONFIG, inference(header))
    write_json(folder / "configs" / "metadata.json", _metadata(header))
    with atomic_write(folder / "docs" / "README.md") as temporary:
        shutil.copyfile(folder / MODELS / "README.md", temporary)


def require_generator(header: dict[str, Any], name: str) -> None:
    """Refuse (ConfigError) a model that makes no volumes by itself."""
    stage = STAGES[header["stage"]]
    if stage.corrects or stage.number == 1:
        raise ConfigError(
            f"--bundle: expected a model that makes volumes, got {name}, a {stage.title.lower()}; name the model that "
            "builds on it, which takes it along."
        )


def inference(header: dict[str, Any]) -> dict[str, Any]:
    """Return the config of inference: every value can be changed on the command line, e.g. ``--num_samples 4``."""
    labels = sorted(header["data"]["label_map"], key=header["data"]["label_map"].__getitem__)
    config: dict[str, Any] = {
        "imports": ["$import prod9", "$from prod9.pipelines.loaded.volumes import save_all"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/output'",
        "device": "auto",
        "num_samples": 1,
        "seed": 0,
        "model": f"$prod9.load(@bundle_root + '/{MODELS}', device=@device)",
    }
    common = "num_samples=@num_samples, seed=@seed"
    if STAGES[header["stage"]].number == 3:
        config |= {"label": labels[0], "seg": None}
        call = f"$@model(@label, seg=@seg, {common})"
    elif _translates(header):
        config |= {"sources": {}, "target": labels[-1]}
        call = f"$@model(sources=@sources, target=@target, {common})"
    else:
        config |= {"label": labels[0]}
        call = f"$@model(@label, {common})"
    return config | {"volumes": call, "run": ["$print(*save_all(@volumes, @output_dir), sep='\\n')"]}


def example(folder: Path, header: dict[str, Any]) -> str:
    """Return a command line that runs the bundle in ``folder``."""
    place = folder.as_posix()
    line = f"python -m monai.bundle run --config_file {place}/{CONFIG} --bundle_root {place}"
    if _translates(header):
        return f"{line} --sources '{json.dumps({'T1': 't1.nii.gz'})}'"
    return f"{line} --seg seg.nii.gz" if STAGES[header["stage"]].number == 3 else line


def _translates(header: dict[str, Any]) -> bool:
    """Return whether the model makes a modality from others."""
    network = header["architecture"].get("transformer", {})
    return header["stage"] == "transformer" and network.get("kind") != "label_conditional"


def _metadata(header: dict[str, Any]) -> dict[str, Any]:
    import prod9

    stage, data = STAGES[header["stage"]], header["data"]
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": list(data["grid"]),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
    }
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by prod9 on {datetime.now(UTC):%Y-%m-%d}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"prod9": prod9.__version__},
        "python_version": platform.python_version(),
        "name": stage.title,
        "task": "Generation of 3D medical images",
        "description": f"{stage.title} of prod9, {header['step']} steps; classes {', '.join(data['label_map'])}.",
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
        "intended_use": "research only: no medical device, not for diagnosis",
        "network_data_format": {
            "inputs": {"image": {**image, "channel_def": {"0": "sources, if the model takes any"}}},
            "outputs": {"pred": {**image, "channel_def": {"0": "volume"}}},
        },
    }
