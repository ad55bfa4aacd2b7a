"""``python -m prod9`` is the command."""

import subprocess
import sys

import pytest

from prod9 import __version__
from prod9.devices import torch_device
from prod9.errors import ConfigError


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prod9", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout


def test_devices_are_named_or_refused() -> None:
    assert torch_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="--device cuda:99: expected one of"):
        torch_device("cuda:99")
