"""The trained pair of tiny models that the fault tests damage copies of."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import Workspace, later_models, trained
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
