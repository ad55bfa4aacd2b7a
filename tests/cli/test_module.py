"""``python -m prod9`` is the command."""

import subprocess
import sys

import pytest

from prod9 import __version__
from prod9.cli.naming import chosen_labels
from prod9.devices import torch_device
from prod9.errors import ConfigError


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prod9", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout


def test_devices_are_named_or_refused() -> None:
    assert torch_device("cpu").type == "cpu"
    with pytest.raises(
        ConfigError,
        match=r"--device: expected a CUDA device that PyTorch sees .*got cuda:99; use auto or cpu",
    ):
        torch_device("cuda:99")


def test_a_label_that_is_nearly_right_is_answered_with_it() -> None:
    known = ("T1", "T1ce", "T2", "FLAIR")
    with pytest.raises(ConfigError, match="got 'FLIAR'; did you mean 'FLAIR'"):
        chosen_labels(["FLIAR"], known)
    with pytest.raises(ConfigError, match="got 'PET'; the model knows no other"):
        chosen_labels(["PET"], known)
