"""The folder of a run: who may write there, and what is written besides checkpoints.

::

    config.yaml      what was run, every default spelt out
    checkpoints/     last.ckpt, previous.ckpt, best-step=….ckpt, best.json
    samples/         pictures
    logs/            CSV and TensorBoard
    run.json         versions, seconds, memory of every session
    metrics.json     the last validation, and the best
    .lock            while a run is going
"""

import json
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prod9.errors import ConfigError
from prod9.files import atomic_write, check_writable

LOCK = ".lock"


def require_fresh(output_dir: Path) -> None:
    """Raise ConfigError when ``output_dir`` holds checkpoints of an earlier run."""
    if any((output_dir / "checkpoints").glob("*.ckpt")):
        raise ConfigError(
            f"output_dir: expected a folder without checkpoints, got {output_dir}, which holds some of an "
            "earlier run; add --resume to go on with it, or name another --output-dir."
        )


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Hold ``output_dir`` for this process; raises ConfigError when another run has it.

    The lock of a process of this machine that no longer lives is taken over.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    check_writable(output_dir)
    lock = output_dir / LOCK
    _take(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def sweep(output_dir: Path) -> None:
    """Delete what a killed run left half-written; call with the lock held."""
    for folder in (output_dir, output_dir / "checkpoints", output_dir / "samples"):
        for orphan in folder.glob(".tmp-*"):
            orphan.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def append_run(output_dir: Path, entry: dict[str, Any]) -> None:
    """Add a session to ``run.json``; a resumed run has several."""
    path = output_dir / "run.json"
    try:
        runs = list(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        runs = []
    write_json(path, {"runs": [*runs, entry]})


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    import prod9

    packages = {name: version(name) for name in ("torch", "monai", "lightning", "numpy")}
    return {"prod9": prod9.__version__, "python": platform.python_version(), **packages}


def peak_memory_gib() -> float:
    """Return the largest resident size of this process so far, in GiB."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _take(lock: Path) -> None:
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    for _ in range(2):
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(mine)
        except FileExistsError:
            holder = _read(lock)
            if _is_alive(holder):
                raise ConfigError(
                    f"output_dir: expected a folder that no other run is using, got {lock.parent}, held by "
                    f"process {holder.get('pid')} on {holder.get('host')}; wait for it, or name another "
                    f"--output-dir. If no such process runs, delete {lock}."
                ) from None
            lock.unlink(missing_ok=True)
        else:
            return
    raise ConfigError(
        f"output_dir: expected to lock {lock}, but another run was faster; name another --output-dir."
    )


def _read(lock: Path) -> dict[str, Any]:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    pid = int(holder.get("pid", 0))
    if pid == os.getpid():
        return False  # An earlier run of this very process, for example in a notebook.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
