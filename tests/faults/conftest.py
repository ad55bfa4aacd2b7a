"""The trained pair of tiny models that the fault tests damage copies of."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.harness import Workspace, later_models, run, trained
from tests.pretend import pretend_cuda
from tests.training.conftest import last_state as last_state
from tests.training.conftest import make_config as make_config
from tests.training.conftest import memory_data as memory_data
from tests.training.conftest import run_json as run_json


class Models(NamedTuple):
    """Run folders of stage 1, the label model, the in-context model and a control network of the label model."""

    stage1: Path
    label: Path
    translator: Path
    control: Path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def models(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(workspace.run1, workspace.run2, *later_models(tmp_path_factory.getbasetemp()))


@pytest.fixture
def waits_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[str]]:
    """Run a command on the pretend device, which has to succeed, and return what it waited for."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    # An optimizer asks whether the stream of the accelerator is being captured, and the pretend device has no streams.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)

    def call(*args: object, command: str = "prod9") -> Counter[str]:
        with pretend_cuda() as device, device.counted() as waits:
            ran = run(command, *args, "--device", "cuda:0")
            found = Counter(waits)
        assert ran.code == 0, ran.err
        return found

    return call
