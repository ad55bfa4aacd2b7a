"""The trained pair of tiny models that the fault tests damage copies of."""

import pytest

from tests.harness import Workspace, trained


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return trained(tmp_path_factory.getbasetemp())
