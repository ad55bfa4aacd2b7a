"""What each of two processes runs in ``test_two_ranks_sharded``: stage 2 under DDP and under FSDP.

The folder has ``upstream.ckpt`` and ``vae.ckpt``. Without the variables that torchrun sets: one run, of this process
alone.

Leaves ``<name>-<strategy>`` of six steps each, ``<name>-<strategy>-<strategy>`` of three steps and three more, and
``rank-<n>.json``. In every run, the second rank's third step is not finite.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prod9.config.schema import RunConfig
from prod9.data.sampling import SampleKey
from prod9.errors import TrainingError
from prod9.training import run
from prod9.training.lightning.base import AbstractLightning
from prod9.training.sharding import own_part, reshard
from tests.training import tiny_maisi
from tests.training.tiny import DECODER, MemoryData, transformer_config

TWO = {"loggers": ["jsonl"], "progress": False, "accelerator": "cpu", "devices": 2}
TRAINING = {
    "lr_schedule": {"kind": "constant", "warmup_steps": 0},
    "log_every_steps": 1,
    "channels_last": False,
    # Below any norm here: what is not clipped alike differs.
    "gradient_clip_norm": 0.05,
}
IN_CONTEXT = DECODER | {"kind": "single_stream"}
MODELS: dict[str, dict[str, Any]] = {
    "label": DECODER,
    # Its blocks are of a width that two ranks cannot halve.
    "source": DECODER | {"kind": "decoder", "embed_dim": 18, "use_checkpointing": True},
    "prefix": IN_CONTEXT | {"use_checkpointing": True},
    "muon": DECODER,
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"muon": {"muon": {}}}
PRECISIONS = {"prefix": "bf16-mixed"}
RESUMED = {"label": ("fsdp-ddp",), "muon": ("ddp-fsdp",), "flow": ("fsdp-fsdp",)}


class UnequalData(MemoryData):
    """Gives the second rank one source a sample in training, so that its batches are of fewer buckets."""

    def __getitem__(self, key: Any) -> dict[str, Any]:
        sample = super().__getitem__(key)
        if "source_labels" in sample and isinstance(key, SampleKey) and os.environ.get("RANK") == "1":
            sample["source_labels"][1:] = -1
        return sample


class Report:
    """Watches the runs of this process, and spoils one of its steps."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.shares: dict[str, float] = {}

    def start(self, module: AbstractLightning) -> None:
        """Note which share of the weights this process holds."""
        parameters = list(module.parameters())
        own = sum(own_part(p).numel() for p in parameters)
        self.shares[Path(module.config.output_dir).name] = own / sum(p.numel() for p in parameters)

    def spoil(self, module: AbstractLightning, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return NaN for the loss of the second rank's third step."""
        bad = self.rank == 1 and module.step == 2
        return losses | {"total": losses["total"] * float("nan")} if bad else losses


def watch(report: Report) -> None:
    """Let ``report`` see every run, on random data and on networks whose every weight matters from the start."""
    on_train_start, step_on = AbstractLightning.on_train_start, AbstractLightning.step_on
    build_module = run.build_module

    def start(self: AbstractLightning) -> None:
        on_train_start(self)
        report.start(self)

    def shaken(*arguments: Any) -> AbstractLightning:
        module = build_module(*arguments)
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        return module

    AbstractLightning.on_train_start = start  # type: ignore[method-assign]
    AbstractLightning.step_on = lambda self, losses: step_on(self, report.spoil(self, losses))  # type: ignore[method-assign]
    run.build_module = shaken
    run.build_data_module = lambda config, *_, **__: UnequalData(config)  # type: ignore[assignment]


def build(folder: Path, output: str, *, strategy: str, devices: int = 2, **training: Any) -> RunConfig:
    """Return the configuration of one run; ``output`` starts with the name of the network."""
    name = output.split("-")[0]
    sections: dict[str, dict[str, Any]] = {
        "trainer": TWO
        | {"strategy": strategy, "devices": devices, "precision": PRECISIONS.get(name, "32-true")},
        "training": TRAINING | OPTIMIZERS.get(name, {}) | training,
    }
    if name == "flow":
        return tiny_maisi.make("maisi_diffusion", folder, output, **sections)
    return transformer_config(
        folder / "data", folder / output, folder / "upstream.ckpt", model=MODELS[name], **sections
    )


def refuses_nan(folder: Path, rank: int) -> bool:
    """Return whether this rank refuses to save when the second holds a weight that is not finite."""
    on_validation_epoch_end = AbstractLightning.on_validation_epoch_end

    def poison(self: AbstractLightning) -> None:
        on_validation_epoch_end(self)
        reshard(self)
        if rank == 1:
            with torch.no_grad():
                own_part(next(self.parameters())).fill_(float("nan"))

    AbstractLightning.on_validation_epoch_end = poison  # type: ignore[method-assign]
    try:
        run.train(build(folder, "label-broken", strategy="fsdp", max_steps=1, ema=None))
    except TrainingError as error:
        return "nothing was saved" in str(error)
    finally:
        AbstractLightning.on_validation_epoch_end = on_validation_epoch_end  # type: ignore[method-assign]
    return False


def main(folder: Path) -> None:
    """Train every network both ways and write ``rank-<n>.json``."""
    rank = int(os.environ.get("RANK", "0"))
    report = Report(rank)
    watch(report)
    if "RANK" not in os.environ:
        run.train(build(folder, "label-alone", strategy="fsdp", devices=1))
        dist.destroy_process_group()
        return
    for name in (*MODELS, "flow"):
        for strategy in ("ddp", "fsdp"):
            run.train(build(folder, f"{name}-{strategy}", strategy=strategy))
    for name, pairs in RESUMED.items():
        for pair in pairs:
            first, second = pair.split("-")
            part = partial(build, folder, f"{name}-{pair}")
            run.train(part(strategy=first, max_steps=3))
            run.train(part(strategy=second), resume="auto")
    refused = refuses_nan(folder, rank)
    (folder / f"rank-{rank}.json").write_text(json.dumps({"shares": report.shares, "refused": refused}))
    dist.destroy_process_group()
