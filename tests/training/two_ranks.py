"""What each of two processes runs in ``test_two_ranks``: every stage, then a report of what it computed."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from prod9.training import run
from prod9.training.lightning.base import AbstractLightning
from tests.training import tiny_maisi
from tests.training.tiny import MemoryData, autoencoder_config, transformer_config, write_autoencoder
from tests.training.tiny_control import control_config, write_transformer
from tests.training.tiny_refiner import refiner_config, write_translator

TWO = {"loggers": [], "progress": False, "accelerator": "cpu", "devices": 2, "strategy": "ddp"}


def checksum(tensors: list[torch.Tensor]) -> list[float]:
    """Return two sums that differ whenever any element does, for all practical purposes."""
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    return [float(flat.sum()), float((flat * torch.arange(1, flat.numel() + 1)).sum())]


def main(folder: Path) -> None:
    """Train every stage and write ``rank-<n>.json``."""
    report: dict[str, Any] = {"gradients": [], "inputs": []}
    step_with, optimise = AbstractLightning.clip_or_drop, AbstractLightning.training_step

    def note_gradients(self: AbstractLightning, optimizer: Any, norm: torch.Tensor, finite: bool) -> None:
        step_with(self, optimizer, norm, finite)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        report["gradients"].append(checksum(grads))

    def note_inputs(self: AbstractLightning, batch: Any, batch_idx: int) -> None:
        report["inputs"].append(list(batch["case_id"]))
        optimise(self, batch, batch_idx)

    AbstractLightning.clip_or_drop = note_gradients  # type: ignore[method-assign]
    AbstractLightning.training_step = note_inputs  # type: ignore[method-assign]
    # The draws of one rank at one step hold NaN: both must skip it.
    run.build_data_module = lambda config, *_, **__: MemoryData(config, bad_steps={7})  # type: ignore[assignment]

    upstream = folder / "upstream.ckpt"
    configs = [
        autoencoder_config(folder / "data", folder / "stage1", trainer=TWO),
        transformer_config(folder / "data", folder / "stage2", upstream, trainer=TWO),
        control_config(folder / "data", folder / "stage3", folder / "base.ckpt", trainer=TWO),
        refiner_config(
            folder / "data", folder / "translator" / "refiner", trainer=TWO, training={"max_steps": 6}
        ),
        tiny_maisi.control_config(folder / "data", folder / "control", folder / "flow.ckpt", trainer=TWO),
    ]
    rank = int(os.environ["RANK"])
    if rank == 0:
        write_autoencoder(upstream)
        write_transformer(folder / "base.ckpt", upstream)
        tiny_maisi.write_vae(folder / "vae.ckpt")
        tiny_maisi.write_flow(folder / "flow.ckpt", folder / "vae.ckpt")
        (folder / "translator").mkdir()
        write_translator(folder / "translator")
    for config in configs:
        result = run.train(config)
        opened = torch.load(Path(config.output_dir) / "checkpoints" / "last.ckpt", weights_only=True)
        report[config.stage] = {
            "checkpoint": result.checkpoint.name,
            "metrics": result.metrics,
            "skipped": opened["prod9_run"]["skipped_steps"],
        }
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()
