"""The folder of a run: who may write there, and its files besides checkpoints.

::

    config.yaml      the config of the run, with every default
    checkpoints/     last.ckpt, previous.ckpt, best-step=….ckpt, best.json
    inputs/          the checkpoints that it builds on
    samples/         pictures
    logs/            CSV and TensorBoard
    run.json         versions, seconds, memory of every session
    metrics.json     the last validation, and the best
    .lock            while a run is going
"""

import math
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from prod9.errors import ConfigError, DataError
from prod9.files import atomic_write
from prod9.json_files import read_json, read_object, write_json
from prod9.system.folders import claimed, finals
from prod9.system.folders import sweep as sweep_folder

CHECKPOINTS = "checkpoints"
INPUTS = "inputs"
"""Folder of a run with its own copies of the checkpoints that it builds on."""
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
INDEX = "best.json"
METRICS = "metrics.json"
WRITTEN = (CHECKPOINTS, INPUTS, "samples", "logs", "cache")
"""Folders that only the run writes into; a store may be shared and is swept under its own lock."""


def holds_run(output_dir: Path) -> bool:
    """Return whether ``output_dir`` holds a run to go on with."""
    return bool(find_checkpoints(output_dir))


def find_checkpoints(output_dir: Path, *, prefer: Literal["best", "last"] = "last") -> list[Path]:
    """Return the complete checkpoints of a run in the order in which they are tried; empty if there is no run.

    output_dir: of the run, or the folder of checkpoints itself.
    """
    inner = output_dir / CHECKPOINTS
    folder = inner if inner.is_dir() else output_dir
    last = [LAST, PREVIOUS]
    best = ranked_best(folder)
    ranked = [*best, *last] if prefer == "best" else [*last, *best]
    # A best one that the index does not list is what a kill left between the two.
    ranked += [file.name for file in reversed(finals(folder, "best-step=*.ckpt"))]
    whole = {file.name for file in finals(folder, "*.ckpt")}
    return [folder / name for name in dict.fromkeys(ranked) if name in whole]


def write_index(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Record the best checkpoints of ``folder``, best first: ``{"file", "step", "value"}`` each."""
    write_json(folder / INDEX, list(entries))


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of :func:`write_index`, those without a value or with NaN last; empty if unreadable."""
    try:
        entries = [dict(entry) for entry in read_json(folder / INDEX)]
        return sorted(entries, key=lambda entry: entry["value"] is None or math.isnan(float(entry["value"])))
    except (DataError, ValueError, TypeError, KeyError):
        return []


def ranked_best(folder: Path) -> list[str]:
    """Return the names in the index of ``folder``, best first, NaN last; empty if unreadable."""
    # A name from a file never leads out of the folder.
    return [Path(str(entry.get("file"))).name for entry in read_index(folder)]


def require_fresh(output_dir: Path) -> None:
    """Raise ConfigError when ``output_dir`` holds an earlier run."""
    if holds_run(output_dir):
        raise ConfigError(
            f"output_dir: expected a folder without checkpoints, got {output_dir}, which holds some of an "
            "earlier run; add --resume to go on with it, or name another --output-dir."
        )


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Hold ``output_dir`` for this process and delete the unfinished files of killed processes.

    Raises ConfigError when another process holds it.
    """
    with claimed(output_dir):
        sweep(output_dir)
        yield


def sweep(output_dir: Path) -> None:
    """Delete unfinished files, and hashes of checkpoints that are gone; the caller holds the lock."""
    sweep_folder(output_dir)
    for name in WRITTEN:
        sweep_folder(output_dir / name, deep=True)
    for sidecar in finals(output_dir / CHECKPOINTS, "*.ckpt.sha256"):
        if not sidecar.with_suffix("").exists():
            sidecar.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def append_run(output_dir: Path, entry: dict[str, Any]) -> None:
    """Add a session to ``run.json``; a resumed run has several."""
    path = output_dir / "run.json"
    try:
        runs = list(read_object(path)["runs"])
    except (DataError, KeyError, TypeError):
        runs = []
    write_json(path, {"runs": [*runs, entry]})


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    import prod9

    packages = {name: version(name) for name in ("torch", "monai", "lightning", "numpy")}
    return {"prod9": prod9.__version__, "python": platform.python_version(), **packages}


def peak_memory_gib() -> float:
    """Return the largest resident size of this process so far, in GiB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return math.nan
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
