"""Training on the pretend device: Lightning with one device that is not there."""

from collections import Counter
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from prod9.training import trainer
from prod9.training.lightning.base import AbstractLightning
from tests.pretend.api import Device
from tests.pretend.tensors import CUDA


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Accept the device as it is."""


class PretendStrategy(SingleDeviceStrategy):
    """One GPU, which is not there."""

    def __init__(self) -> None:
        super().__init__(device=CUDA, accelerator=_Accelerator())

    def teardown(self) -> None:
        """Leave the network where it is."""


@contextmanager
def trained_on(device: Device) -> Any:
    """Let every run train on ``device`` in bfloat16, as on a GPU; yield what each step of each run waits for."""
    steps: list[Counter[str]] = []
    step = AbstractLightning.training_step

    def counted(self: AbstractLightning, *batch: Any) -> None:
        with device.counted() as waits:
            step(self, *batch)
            steps.append(Counter(waits))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_hardware", lambda *_: ("auto", 1))
        patch.setattr(trainer, "_strategy", lambda *_: PretendStrategy())
        patch.setattr(trainer, "_precision", lambda *_: "bf16-mixed")
        patch.setattr(AbstractLightning, "training_step", counted)
        yield steps
