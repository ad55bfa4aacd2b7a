"""Settings of every test: shapes are checked, one thread, no network, reproducible examples.

Nothing here imports torch, so tests of configs and commands start at once.
"""

import gc
import ipaddress
import os
import socket
import sys
from typing import Any

# Before torch is imported by anyone: tests are small, and two processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests run on the CPU, and looking for a GPU loads its driver for every run.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
from hypothesis import settings

from prod9.system.waiting import limit_spinning
from tests.pixels import write_pixel

pytest_plugins = ["tests.cpu_seconds", "tests.shape_checks"]

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

settings.register_profile("prod9", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("prod9")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over modules and tests, which stay: a full collection takes a second otherwise.

    And look at young objects less often: it took a twentieth of the suite.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


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


@pytest.fixture(autouse=True, scope="session")
def small_pictures() -> Any:
    """Let the validations of tiny runs write a pixel: drawing takes as long as the rest, and has tests of its own."""
    patch = pytest.MonkeyPatch()
    # Not imported for tests that train nothing.
    if (callbacks := sys.modules.get("prod9.training.callbacks")) is not None:
        patch.setattr(callbacks, "write_montage", write_pixel)
    yield
    patch.undo()
