"""Ids of GPUs on a CPU, or more GPUs than there are, ended in an error of Lightning that named no key."""

import pytest

from prod9.errors import ConfigError
from prod9.training.trainer import _require_devices


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"), [([0], "cpu", 1), ([0, 2], "gpu", 2), (3, "gpu", 2), (2, "mps", 1)]
)
def test_other_devices_are_refused_by_key(devices, accelerator, count):
    with pytest.raises(ConfigError, match=r"^trainer\.devices: expected"):
        _require_devices(devices, accelerator, count)


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"),
    [(3, "cpu", 1), ("auto", "gpu", 2), ([1], "gpu", 2), (2, "gpu", 2), ([0], "mps", 1)],
)
def test_those_that_exist_are_taken(devices, accelerator, count):
    _require_devices(devices, accelerator, count)
