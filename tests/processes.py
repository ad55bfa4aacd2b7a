"""Processes of their own for tests of ranks, kills and compilers, without an import of torch for each.

They are clean: their modules were imported without the shape checks of the tests, which no compiler understands, and
nothing was computed or trained in them yet. On Linux they are forked from one server that the first of them starts.
"""

import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prod9.system.processes import clean_context
from tests.pixels import write_pixel

PRELOADED = ("prod9.cli.app", "prod9.training.run", "prod9.pipelines.loaded", "prod9.training.data.encoders")


def start(
    target: Callable[..., Any], *args: Any, log: Path | None = None, env: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start ``target(*args)`` in a process of its own; what it prints goes to ``log``."""
    process = clean_context(*PRELOADED).Process(target=_enter, args=(target, args, log, dict(env or {})))
    process.start()
    return process


def run(target: Callable[..., Any], *args: Any, log: Path, timeout: float = 240) -> None:
    """Run ``target(*args)`` in a process of its own to its end; fails with the end of ``log`` if it fails."""
    process = start(target, *args, log=log)
    code = _wait(process, timeout)
    assert code == 0, f"exit code {code}:\n{log.read_text()[-3000:]}"


def run_ranks(
    target: Callable[..., Any], folder: Path, *args: Any, timeout: float = 240
) -> tuple[list[int | None], list[str]]:
    """Run ``target(folder, *args)`` as two processes that find each other; return exit codes and what they printed.

    A process that has not ended after ``timeout`` seconds is killed; its code is -9.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    logs = [folder / f"rank-{rank}.log" for rank in "01"]
    with ExitStack() as stack:
        children = []
        for rank, log in zip("01", logs, strict=True):
            env = shared | {"RANK": rank, "LOCAL_RANK": rank}
            child = start(target, folder, *args, log=log, env=env)
            stack.callback(child.kill)
            children.append(child)
        codes = [_wait(child, timeout) for child in children]
    return codes, [log.read_text() for log in logs]


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: BaseProcess, timeout: float) -> int | None:
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _enter(target: Callable[..., Any], args: tuple[Any, ...], log: Path | None, env: dict[str, str]) -> None:
    os.environ.update(env)
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # The streams that were inherited may be buffers of the tests' own.
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    torch.set_num_threads(1)
    # Lightning has noted the rank of the server.
    rank_zero_only.rank = int(env.get("RANK", "0"))
    if (callbacks := sys.modules.get("prod9.training.callbacks")) is not None:
        callbacks.write_montage = write_pixel  # type: ignore[attr-defined]
    target(*args)
