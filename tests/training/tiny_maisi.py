"""Configurations of the MAISI family small enough to train in a test."""

from pathlib import Path
from typing import Any

import torch

from prod9.config.schema import MaisiControlNetConfig, MaisiDiffusionConfig, MaisiVAEConfig
from prod9.models.checkpoint_file import write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager, make_header
from prod9.models.checkpoint_places import describe_input
from prod9.models.factory import ModelFactory
from tests.training.tiny import QUIET, _data, _merged, _training

VAE = {
    "latent_channels": 2,
    "num_channels": [8, 8],
    "num_res_blocks": [1, 1],
    "norm_num_groups": 4,
    "space_to_depth": 2,
}
UNET = {
    "num_channels": [8, 8],
    "attention_levels": [False, True],
    "num_head_channels": [0, 4],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 5,
}
LABELS = {"T1": 1, "T1ce": 2, "T2": 3, "FLAIR": 4}


def make(stage: str, folder: Path, name: str, **sections: Any) -> Any:
    """Return a configuration of ``stage``; later stages get untrained earlier ones."""
    if stage == "maisi_vae":
        return vae_config(folder / "data", folder / name, **sections)
    upstream = folder / "vae.ckpt"
    if not upstream.exists():
        write_vae(upstream)
    if stage == "maisi_controlnet":
        base = folder / "flow.ckpt"
        if not base.exists():
            write_flow(base, upstream)
        return control_config(folder / "data", folder / name, base, **sections)
    return diffusion_config(folder / "data", folder / name, upstream, **sections)


def vae_config(root: Path, output_dir: Path, **sections: dict[str, Any]) -> MaisiVAEConfig:
    """Return a stage-1 configuration; ``sections`` are merged one level deep."""
    values: dict[str, Any] = {
        "stage": "maisi_vae",
        "output_dir": str(output_dir),
        "model": VAE,
        "data": _data(root) | {"batch_size": 2, "crop_size": [8, 8, 8], "whole_volume_fraction": 0.5},
        "loss": {
            "adversarial": {"start_step": 2, "discriminator": {"channels": 4, "num_layers_d": 1}},
            "kl_warmup_steps": 4,
        },
        "training": _training(),
        "trainer": QUIET,
        "callbacks": {"num_samples": 1},
    }
    return _merged(values, sections)  # type: ignore[return-value]


def diffusion_config(
    root: Path, output_dir: Path, autoencoder: Path, **sections: dict[str, Any]
) -> MaisiDiffusionConfig:
    """Return a stage-2 configuration on the autoencoder at ``autoencoder``."""
    values: dict[str, Any] = {
        "stage": "maisi_diffusion",
        "output_dir": str(output_dir),
        "inputs": {"autoencoder": str(autoencoder)},
        "model": UNET,
        "data": _data(root) | {"batch_size": 4, "label_map": LABELS},
        "training": _training(),
        "trainer": QUIET,
        "sampler": {"steps": 2},
        "callbacks": {"num_samples": 2},
    }
    return _merged(values, sections)  # type: ignore[return-value]


def control_config(
    root: Path, output_dir: Path, diffusion: Path, **sections: dict[str, Any]
) -> MaisiControlNetConfig:
    """Return a stage-3 configuration on the diffusion network at ``diffusion``."""
    values: dict[str, Any] = {
        "stage": "maisi_controlnet",
        "output_dir": str(output_dir),
        "inputs": {"diffusion": str(diffusion)},
        "model": {"channels": [4, 6]},
        "data": _data(root) | {"batch_size": 4, "label_map": LABELS},
        "loss": {"control_dropout": 0.3},
        "training": _training(),
        "trainer": QUIET,
        "sampler": {"steps": 2},
        "validation": {"num_volumes": 2},
        "callbacks": {"num_samples": 1},
    }
    return _merged(values, sections)  # type: ignore[return-value]


def write_flow(path: Path, autoencoder: Path, *, seed: int = 0) -> torch.nn.Module:
    """Write a shaken, untrained stage-2 checkpoint on ``autoencoder`` to ``path`` and return its network."""
    config = diffusion_config(path.parent / "data", path.parent, autoencoder)
    upstream = CheckpointManager.load_autoencoder(autoencoder, stage="maisi_vae")
    torch.manual_seed(seed)
    network = ModelFactory.create_diffusion(config.model, latent_channels=upstream.network.latent_channels)
    for parameter in network.parameters():  # a fresh network answers 0 whatever it is told
        torch.nn.init.normal_(parameter, std=0.1)
    data = config.data.model_dump(mode="json", include={"grid", "label_map", "spacing", "intensity"})
    affine = torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])).tolist()
    header = make_header(
        config,
        architecture={
            "diffusion": config.model.model_dump(mode="json"),
            "autoencoder": upstream.header["architecture"]["autoencoder"],
        },
        step=3,
        split={"train": ["a", "b", "c", "d"], "val": ["e"], "test": ["f"]},
        inputs={"autoencoder": describe_input(upstream.path, upstream.sha256, path.parent)},
        data=data | {"reference_affine": affine, "scale_factor": 0.5},
    )
    state = {f"diffusion.{name}": tensor for name, tensor in network.state_dict().items()}
    write_checkpoint({"prod9": header, "state_dict": state}, path)
    return network


def write_vae(path: Path) -> None:
    """Write an untrained stage-1 checkpoint to ``path``."""
    config = vae_config(path.parent, path.parent)
    torch.manual_seed(0)
    network = ModelFactory.create_autoencoder(config.model)
    header = make_header(
        config,
        architecture={"autoencoder": config.model.model_dump(mode="json")},
        step=7,
        split={"train": ["a", "b"], "val": ["c"], "test": []},
        inputs={},
        data={
            "grid": [16, 16, 16],
            "label_map": LABELS,
            "spacing": None,
            "intensity": {},
            "reference_affine": torch.eye(4).tolist(),
        },
    )
    weights = {f"autoencoder.{name}": tensor for name, tensor in network.state_dict().items()}
    write_checkpoint({"prod9": header, "state_dict": weights}, path)
