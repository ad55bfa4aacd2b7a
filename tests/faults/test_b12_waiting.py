"""Threads do not spin away the time that other work needs, and the user decides where they want to."""

import json
import os
import subprocess
import sys

import pytest

from prod9.waiting import CHOICES, SPIN_COUNT, limit_spinning

_PROBE = """
import json, os, sys
import {module}
assert "torch" not in sys.modules
print(json.dumps({{name: os.environ.get(name) for name in {names!r}}}))
"""


def variables(module: str, **environ: str) -> dict[str, str | None]:
    """Return what is set once ``module`` is imported, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES} | environ
    code = _PROBE.format(module=module, names=CHOICES)
    ran = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("module", ["prod9.cli.app", "prod9.cli.transformer"])
def test_b12_commands_limit_spinning_before_torch_is_imported(module):
    assert variables(module) == {"GOMP_SPINCOUNT": SPIN_COUNT, "OMP_WAIT_POLICY": None}


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_b12_the_user_decides(chosen):
    environ = dict(chosen)
    limit_spinning(environ)
    assert environ == chosen


def test_b12_tests_run_so_too():
    assert any(name in os.environ for name in CHOICES)
