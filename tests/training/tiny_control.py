"""Stage 3 small enough for a test: an untrained base of two pairs of blocks, and a control network on it."""

from pathlib import Path
from typing import Any

import torch

from prod9.config.schema import MaskGiTControlNetLightningConfig
from prod9.models.checkpoint_file import write_checkpoint
from prod9.models.checkpoint_manager import CheckpointManager, make_header
from prod9.models.checkpoint_places import describe_input
from prod9.models.factory import ModelFactory
from tests.training.tiny import QUIET, _data, _merged, _training, transformer_config, write_autoencoder

BASE = {"num_blocks": 4, "dropout": 0.1, "groups": "per_level", "num_heads": 2, "embed_dim": 24}


def write_transformer(path: Path, autoencoder: Path, *, seed: int = 0, **model: Any) -> torch.nn.Module:
    """Write a shaken, untrained stage-2 checkpoint on ``autoencoder`` to ``path`` and return its network."""
    config = transformer_config(path.parent / "data", path.parent, autoencoder, model=BASE | model)
    upstream = CheckpointManager.load_autoencoder(autoencoder)
    torch.manual_seed(seed)
    network = ModelFactory.create_transformer(config.model, levels=upstream.network.levels)
    for parameter in network.parameters():  # fresh heads predict the same whatever they are told
        torch.nn.init.normal_(parameter, std=0.2)
    data = config.data.model_dump(mode="json", include={"grid", "label_map", "spacing", "intensity"})
    header = make_header(
        config,
        architecture={
            "transformer": config.model.model_dump(mode="json"),
            "autoencoder": upstream.header["architecture"]["autoencoder"],
        },
        step=3,
        split={"train": ["a", "b", "c", "d"], "val": ["e"], "test": ["f"]},
        inputs={"autoencoder": describe_input(upstream.path, upstream.sha256, path.parent)},
        data=data | {"reference_affine": torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])).tolist()},
    )
    state = {f"decoder.{name}": tensor for name, tensor in network.state_dict().items()}
    write_checkpoint({"prod9": header, "state_dict": state}, path)
    return network


def control_config(
    root: Path, output_dir: Path, transformer: Path, **sections: dict[str, Any]
) -> MaskGiTControlNetLightningConfig:
    """Return a stage-3 configuration on the transformer at ``transformer``."""
    values: dict[str, Any] = {
        "stage": "maskgit_controlnet",
        "output_dir": str(output_dir),
        "inputs": {"transformer": str(transformer)},
        "model": {"channels": [4, 6]},
        "data": _data(root) | {"batch_size": 4},
        "loss": {"control_dropout": 0.3},
        "training": _training(),
        "trainer": QUIET,
        "sampler": {"steps": 3, "order": "halton"},
        "validation": {"num_volumes": 2},
        "callbacks": {"num_samples": 1},
    }
    return _merged(values, sections)  # type: ignore[return-value]


def make(folder: Path, name: str, **sections: Any) -> MaskGiTControlNetLightningConfig:
    """Return a stage-3 configuration below ``folder``, where earlier stages are written first if missing."""
    autoencoder, transformer = folder / "upstream.ckpt", folder / "transformer.ckpt"
    if not autoencoder.exists():
        write_autoencoder(autoencoder)
    if not transformer.exists():
        write_transformer(transformer, autoencoder)
    return control_config(folder / "data", folder / name, transformer, **sections)
