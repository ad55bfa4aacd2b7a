"""Settings of every test: shapes are checked, one thread, no network, reproducible examples.

Nothing here imports torch, so tests of configs and commands start at once.
"""

import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before torch is imported by anyone: tests are small, and two processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from prod9.system.waiting import limit_spinning

CHECKED_PACKAGES = [
    "prod9.autoencoder",
    "prod9.controlnet",
    "prod9.diffusion",
    "prod9.generator",
    "prod9.training.algorithms",
    "prod9.training.losses",
    "prod9.measures.metrics",
]
"""Every annotated call in these is checked against its shapes and types; they must not be imported yet."""

pytest_plugins = ["tests.cpu_seconds"]

if sys.platform == "win32":
    # Forks, named pipes, users and signals that Windows lacks.
    collect_ignore_glob = [
        "soak/*",
        "faults/test_b06_no_user.py",
        "faults/test_b08_one_walk.py",
        "faults/test_b5_headers.py",
        "faults/test_r02_signals_and_schedulers.py",
        "faults/test_r03_reading.py",
        "faults/test_r04_shared_folders.py",
        "faults/test_r05_locks.py",
        "faults/test_r06_shared_stores.py",
        "faults/test_r18_checkpoint_headers.py",
        "faults/test_r25_kill_at_every_call.py",
        "faults/test_r28_two_ranks.py",
        "models/test_checkpoint_file.py",
    ]

limit_spinning()  # none of the above imports torch

install_import_hook(CHECKED_PACKAGES, "beartype.beartype")

settings.register_profile("prod9", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("prod9")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over modules and tests, which stay: a full collection takes a second otherwise."""
    gc.collect()
    gc.freeze()


_connect = socket.socket.connect


def _connect_locally(self: socket.socket, address: Any) -> None:
    if self.family == socket.AF_UNIX or _is_loopback(address[0]):
        return _connect(self, address)
    raise RuntimeError(f"a test tried to reach {address}; tests run without a network")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _connect_locally)
    yield
    patch.undo()


# One black pixel.
_PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200"
    "0148afa4710000000049454e44ae426082"
)


def _write_small_picture(path: Path, rows: Sequence[Sequence[Any]], **_: Any) -> None:
    assert rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_PICTURE)


@pytest.fixture(autouse=True, scope="session")
def small_pictures() -> Any:
    """Let the validations of tiny runs write a pixel: drawing takes as long as the rest, and has tests of its own."""
    patch = pytest.MonkeyPatch()
    # Not imported for tests that train nothing.
    if (callbacks := sys.modules.get("prod9.training.callbacks")) is not None:
        patch.setattr(callbacks, "write_montage", _write_small_picture)
    yield
    patch.undo()
