"""Checks every annotated call against its shapes and types, in the tests of the parts that are annotated so.

Tests of whole commands and runs go without, as users do: checks take a tenth of their time.
"""

from collections.abc import Iterator
from functools import partial
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any
from unittest.mock import patch

import pytest
from jaxtyping import _import_hook as hook
from jaxtyping import config, install_import_hook

PACKAGES = [
    *(f"prod9.autoencoder.autoencoder_{kind}" for kind in ("fsq", "maisi")),
    *(f"prod9.autoencoder.{module}" for module in ("discriminator", "inference", "padding")),
    "prod9.controlnet",
    "prod9.diffusion",
    "prod9.generator",
    "prod9.training.algorithms",
    "prod9.training.losses",
    "prod9.measures.metrics",
]
"""What is checked; nothing of it may be imported yet.

Not the operators of autoencoders, which are called a hundred times per volume and compared with torch's in their own
tests: checking their calls took a twentieth of the suite.
"""
_CHECKED = (
    "tests/architecture/test_shape_checks.py",
    *(
        f"tests/{part}/"
        for part in ("autoencoder", "controlnet", "detail", "diffusion", "generator", "measures")
    ),
    *(f"tests/training/{part}/" for part in ("algorithms", "losses")),
)
"""Beginnings of the names of the tests that check."""


def _get_code(self: Any, fullname: str) -> CodeType | None:
    """Find the compiled file of a checked module under a name of its own.

    jaxtyping gives that name to all that a module imports while it runs, too, so that every process compiled torch and
    MONAI from their source, for 17 s.
    """
    named = partial(hook._optimized_cache_from_source, self._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", named):
        return SourceFileLoader.get_code(self, fullname)


hook._JaxtypingLoader.get_code = _get_code  # type: ignore[method-assign]
hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module  # type: ignore[method-assign]
install_import_hook(PACKAGES, "beartype.beartype")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    config.update("jaxtyping_disable", not item.nodeid.startswith(_CHECKED))
    return (yield)
