"""Memory and disk: what a run needs, and what this machine has."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from prod9.system import machine
from prod9.system.machine import expand
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.planning.estimates import Resources

GIB = 1024**3


def wanted_disk(config: "RunConfig", needs: "Resources", volumes: int) -> int:
    """Return the bytes a run writes: checkpoints (best ones, the last, the one before and the early one) and tokens."""
    keeping = config.callbacks.checkpoint
    checkpoints = (keeping.save_top_k + 2 + (keeping.keep_early is not None)) * needs.checkpoint_bytes
    cached = volumes * 2 * math.prod(config.data.grid) if config.data.cache == "disk" else 0
    return checkpoints + volumes * needs.store_bytes_per_volume + cached


def device_memory(device: str) -> int | None:
    """Return the memory of ``cpu``, ``cuda`` or ``cuda:N`` in bytes; None if the system does not report it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(torch.device(device)).total_memory
    return machine.memory().total


def free_disk(path: Path) -> int:
    """Return the bytes that are free where ``path`` is or will be."""
    path = expand(path).absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def shortages(memory: int, there: int | None, disk: int, free: int) -> list[str]:
    """Return messages for shortages: ``memory`` and ``disk`` in bytes against what there is."""
    found = []
    if there is not None and memory > there:
        found.append(
            f"memory: a step needs about {memory / GIB:.1f} GiB, the device has {there / GIB:.1f}; lower "
            "data.batch_size or data.crop_size, or set model.use_checkpointing=true"
        )
    if disk > free:
        found.append(f"disk: the run writes about {disk / GIB:.1f} GiB, {free / GIB:.1f} are free; free some")
    return found


def check_workers(config: "RunConfig") -> list[str]:
    """Return a warning if there are more loader processes than cores."""
    wanted, there = config.data.num_workers, machine.cores()
    if wanted <= there:
        return []
    return [
        f"data.num_workers: {wanted} processes on {plural(there, 'core')} wait for each other; set it to {there} or "
        "less"
    ]
