"""Configurations small enough to train in a test: 16³ volumes, a few thousand weights."""

from collections.abc import Set
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from prod9.config.load import config_from_dict
from prod9.config.schema import (
    AutoencoderConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    RefinerConfig,
    Stage1Config,
    TransformerConfig,
)
from prod9.data.sampling import SampleKey, StepBatchSampler
from prod9.data.splits import Split
from prod9.models.checkpoint_file import write_checkpoint
from prod9.models.checkpoint_manager import make_header
from prod9.models.factory import ModelFactory

AUTOENCODER = {
    "levels": [5, 5, 5],
    "num_channels": [8, 8],
    "num_res_blocks": [1, 1],
    "norm_num_groups": 4,
    "space_to_depth": 2,
}
DECODER = {"kind": "label_conditional", "embed_dim": 24, "num_blocks": 2, "num_heads": 2, "dropout": 0.1}
QUIET = {"loggers": ["csv"], "progress": False, "accelerator": "cpu"}


def autoencoder_config(root: Path, output_dir: Path, **sections: dict[str, Any]) -> AutoencoderConfig:
    """Return a stage-1 configuration; ``sections`` are merged one level deep."""
    values: dict[str, Any] = {
        "stage": "autoencoder",
        "output_dir": str(output_dir),
        "model": AUTOENCODER,
        "data": _data(root) | {"batch_size": 2, "crop_size": [8, 8, 8], "whole_volume_fraction": 0.5},
        "loss": {
            "adversarial": {"start_step": 2, "discriminator": {"channels": 4, "num_layers_d": 1}},
        },
        "training": _training(),
        "trainer": QUIET,
        "callbacks": {"num_samples": 1},
    }
    return _merged(values, sections)  # type: ignore[return-value]


def transformer_config(
    root: Path, output_dir: Path, autoencoder: Path, **sections: dict[str, Any]
) -> TransformerConfig:
    """Return a stage-2a configuration on the autoencoder at ``autoencoder``."""
    values: dict[str, Any] = {
        "stage": "transformer",
        "output_dir": str(output_dir),
        "inputs": {"autoencoder": str(autoencoder)},
        "model": DECODER,
        "data": _data(root) | {"batch_size": 4},
        "training": _training(),
        "trainer": QUIET,
        "sampler": {"steps": 3},
        "callbacks": {"num_samples": 2},
    }
    return _merged(values, sections)  # type: ignore[return-value]


def write_autoencoder(path: Path, *, seed: int = 0, **model: Any) -> dict[str, Tensor]:
    """Write an untrained stage-1 checkpoint to ``path`` and return its network's weights."""
    config = autoencoder_config(path.parent, path.parent, model=AUTOENCODER | model)
    torch.manual_seed(seed)
    state = ModelFactory.create_autoencoder(config.model).state_dict()
    header = make_header(
        config,
        architecture={"autoencoder": config.model.model_dump(mode="json")},
        step=7,
        split={"train": ["a", "b"], "val": ["c"], "test": []},
        inputs={},
        data={
            "grid": [16, 16, 16],
            "label_map": {"T1": 0},
            "spacing": None,
            "intensity": {},
            "reference_affine": [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]],
        },
    )
    weights = {f"autoencoder.{name}": tensor for name, tensor in state.items()}
    write_checkpoint({"prod9": header, "state_dict": weights}, path, keep_previous=path.name == "last.ckpt")
    return state


def _data(root: Path) -> dict[str, Any]:
    return {
        "root": str(root),
        "grid": [16, 16, 16],
        "split": {"train": 0.5, "val": 0.25, "test": 0.25},
    }


def _training() -> dict[str, Any]:
    return {
        "max_steps": 6,
        "validate_every_steps": 4,
        "log_every_steps": 2,
        "learning_rate": 1e-3,
        "lr_schedule": {"warmup_steps": 2},
        "ema": {"decay": 0.9},
    }


def _merged(values: dict[str, Any], sections: dict[str, dict[str, Any]]) -> Any:
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return config_from_dict(values, source="test")


class MemoryData(LightningDataModule):
    """Random volumes, or tokens, drawn as the real data modules draw them, without files.

    latent_std: of the latents of MAISI's stage 2.
    ``bad_steps`` give NaN: volumes of stage 1 only. ``stop_before`` raises in the loader, like a crash.
    """

    def __init__(
        self,
        config: Any,
        *,
        bad_steps: Set[int] = frozenset(),
        stop_before: int | None = None,
        latent_std: float = 2.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.bad_steps = bad_steps
        self.stop_before = stop_before
        self.latent_std = latent_std
        self.start_step = 0
        self.split = Split(train=("a", "b", "c", "d"), val=("e",), test=("f",))
        self.reference_affine = np.diag([4.0, 4.0, 4.0, 1.0])

    def set_start_step(self, step: int) -> None:
        self.start_step = step

    def noise_levels(self) -> dict[str, list[float]]:
        return {}

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        sampler = StepBatchSampler(
            num_items=4,
            batch_size=self.config.data.batch_size,
            num_steps=self.config.training.max_steps,
            seed=self.config.seed,
            start_step=self.start_step,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return DataLoader(self, batch_sampler=sampler)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self, sampler=[100, 101])  # type: ignore[arg-type]

    test_dataloader = val_dataloader

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index, draw = (key.index, key.draw) if isinstance(key, SampleKey) else (key, key)
        step = draw // self.config.data.batch_size
        if isinstance(key, SampleKey) and step == self.stop_before:
            raise RuntimeError("the power went")
        # Augmented: a resumed run that lost its place would see other numbers.
        generator = torch.Generator().manual_seed(index * 1000 + draw)
        sample = {"label": index % 4, "case_id": f"case{index}"}
        if isinstance(self.config, Stage1Config):
            image = torch.rand(1, 16, 16, 16, generator=generator)
            return sample | {"image": image * (nan if step in self.bad_steps else 1.0), "modality": "T1"}
        if isinstance(self.config, MaisiDiffusionConfig):
            latent = torch.randn(2, 4, 4, 4, generator=generator) * self.latent_std
            return sample | {"label": index % 4 + 1, "latent": latent, "spacing": torch.full((3,), 4.0)}
        if isinstance(self.config, MaisiControlNetConfig):
            return sample | {
                "label": index % 4 + 1,
                "latent": torch.randn(2, 4, 4, 4, generator=generator) * self.latent_std,
                "spacing": torch.full((3,), 4.0),
                "foreground": torch.rand(4, 4, 4, generator=generator) > 0.3,
                "seg": torch.randint(4, (16, 16, 16), generator=generator).to(torch.uint8),
                "has_seg": torch.tensor(index != 3),
                "images": torch.rand(2, 16, 16, 16, generator=generator),
                "modality": "T1",
                "source_latent": torch.randn(2, 4, 4, 4, generator=generator),
            }
        if isinstance(self.config, RefinerConfig):
            volumes = torch.rand(6, 16, 16, 16, generator=generator)
            present = torch.arange(4) == (index + 1) % 4
            inputs = {
                "decoded": volumes[:1],
                "sources": volumes[1:5],
                "present": present,
                "region": volumes[:1] > 0.9,
                "head_voxels": (volumes[1:5][present] > 0).any(0).sum(),
            }
            return sample | inputs | {"target": volumes[5:], "modality": "T1"}
        tokens = torch.randint(125, (4, 4, 4), generator=generator)
        foreground = torch.rand(4, 4, 4, generator=generator) > 0.3
        sources = torch.rand(3, 3, 4, 4, 4, generator=generator)
        # One, two or three sources of other classes than the target's.
        labels = torch.tensor([(index + 1 + k) % 4 if k <= draw % 3 else -1 for k in range(3)])
        more: dict[str, dict[str, Any]] = {
            "decoder": {"source_latent": sources[0], "source_label": 0},
            "single_stream": {
                "source_latents": sources,
                "source_labels": labels,
                "co_registered": torch.ones(3, dtype=torch.bool),
            },
        }
        more["controlnet_maskgit"] = {
            "seg": torch.randint(4, (16, 16, 16), generator=generator).to(torch.uint8),
            "has_seg": torch.tensor(index != 3),
            "modality": "T1",
        }
        kind = self.config.model.kind
        return sample | {"target_indices": tokens, "foreground": foreground} | more.get(kind, {})
