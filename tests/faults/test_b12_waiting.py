"""Threads do not spin away the time that other work needs, and the user decides where they want to."""

import json
import os
import subprocess
import sys

import pytest

from prod9.system.machine import is_busy
from prod9.system.waiting import CHOICES, SPIN_COUNT, SPIN_COUNT_BUSY, limit_spinning

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
    found = variables(module)
    assert found["GOMP_SPINCOUNT"] in (SPIN_COUNT, SPIN_COUNT_BUSY)  # by what else runs beside the tests
    assert found["OMP_WAIT_POLICY"] is None


@pytest.mark.parametrize(("busy", "count"), [(False, SPIN_COUNT), (True, SPIN_COUNT_BUSY)])
def test_b12_less_on_a_busy_machine(busy, count):
    environ = {}
    limit_spinning(environ, busy=busy)
    assert environ == {"GOMP_SPINCOUNT": count}


@pytest.mark.parametrize(
    ("line", "busy"),
    [
        ("{over}.50 3.20 1.41 {many}/412 30521", True),
        ("{over}.50 3.20 1.41 1/412 30521", False),  # the last minute was busy, now it is over
        ("0.20 3.20 1.41 {many}/412 30521", False),  # a moment of work is none
        ("1.20 3.20 1.41 {many}/412 30521", False),
        ("", False),
        ("no numbers at all", False),
    ],
)
def test_b12_busy_is_more_work_than_cores_for_a_minute(tmp_path, line, busy):
    cores = os.cpu_count() or 1
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text(line.format(over=2 * cores, many=cores + 2))
    assert is_busy(tmp_path) is busy


def test_b12_systems_without_a_load_average_are_not_busy(tmp_path):
    assert is_busy(tmp_path) is False


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_b12_the_user_decides(chosen):
    environ = dict(chosen)
    limit_spinning(environ)
    assert environ == chosen


def test_b12_tests_run_so_too():
    assert any(name in os.environ for name in CHOICES)
