"""Adds up the processor seconds of each test, with its fixtures and processes, and names the most expensive.

Wall-clock times mislead on a machine that does other things; processor seconds do not. A process counts for the
test that waited for its end.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

LIMIT = 8.0
"""Processor seconds of one test, its fixtures included; more needs a reason (CONTRIBUTING, Tests)."""
NUM_SHOWN = 15

_last = 0.0


def _seconds() -> float:
    times = os.times()  # children: those that were waited for
    return times.user + times.system + times.children_user + times.children_system


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-file", type=Path, help="write the processor seconds of each test to this JSON file"
    )


def pytest_runtest_logstart() -> None:
    global _last
    _last = _seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    global _last
    report = yield
    now = _seconds()
    report.user_properties = [*report.user_properties, ("cpu_seconds", now - _last)]
    _last = now
    return report


class Totals:
    """Collects what the reports of all processes say."""

    def __init__(self) -> None:
        self.by_test: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        # Later phases repeat the properties of the item, not of the report.
        self.by_test[report.nodeid] += float(properties.get("cpu_seconds", 0.0))

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        path = config.getoption("--cpu-file")
        if path is not None:
            path.write_text(json.dumps(self.by_test, indent=0), encoding="utf-8")
        slow = [(name, seconds) for name, seconds in self.by_test.most_common(NUM_SHOWN) if seconds > LIMIT]
        terminalreporter.write_sep("=", f"processor seconds: {sum(self.by_test.values()):.0f} in all")
        for name, seconds in slow:
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Totals(), "cpu-totals")
