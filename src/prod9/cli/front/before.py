"""What a training says before it trains: what begins, within a second, and what it needs."""

import os
from typing import TYPE_CHECKING, Any

from prod9.devices import torch_device
from prod9.stages import STAGES
from prod9.system.terminal import PlainConsole

if TYPE_CHECKING:
    from pathlib import Path

    from prod9.cli.checks.bases import Bases
    from prod9.config.schema import RunConfig

_MESSAGES = PlainConsole(stderr=True)
_DEVICES = {"cpu": "cpu", "gpu": "cuda", "mps": "mps"}
"""``trainer.accelerator`` → the device that it means; any other leaves it to ``--device``."""


def say_what_begins(config: "RunConfig", given: str) -> None:
    """Say what begins, before the seconds that the libraries take."""
    if _is_first_process():
        _MESSAGES.print(
            f"Training: {STAGES[config.stage].title}, {config.training.max_steps} steps of {given}, on "
            f"{config.data.root}, into {config.output_dir}. Loading libraries and looking through the data …"
        )


def say_finetuning_begins(model: str, data: "Path", folder: "Path") -> None:
    """Say what begins, before the seconds that the libraries take."""
    _MESSAGES.print(
        f"Fine-tuning {model} on {data}, into {folder}. Loading libraries and looking through the data …"
    )


def _is_first_process() -> bool:
    """Return whether this is the only process of a run, or the first of them; known without torch."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def say_memory(config: "RunConfig", bases: "Bases[Any]", device: str) -> None:
    """Say what a step is estimated to need; the time left follows from the first steps."""
    if not _is_first_process():
        return
    from prod9.cli.checks.resources import GIB, device_memory

    asked = _DEVICES.get(config.trainer.accelerator, device) if device == "auto" else device
    chosen = torch_device(asked)
    needs, there = bases.needs("cuda" if chosen.type == "cuda" else "cpu"), device_memory(str(chosen))
    of = "" if there is None else f" of {there / GIB:.1f}"
    _MESSAGES.print(
        f"Memory: about {needs.memory_gib:.1f} GiB{of} for a step on {chosen}, by estimate. The time left is told "
        "after the first steps."
    )
