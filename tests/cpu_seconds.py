"""Adds up the processor seconds of each test, with its fixtures and processes, and names the most expensive.

Wall-clock times mislead on a machine that does other things; processor seconds do not. What a fixture of a module or
of the session costs counts for the first test that uses it.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

COSTS = Path(__file__).with_name("cpu_seconds.json")
"""File of tests → processor seconds, of those that are long; written by ``--cpu-file``."""
LIMIT = 8.0
"""Processor seconds of one test; more needs a reason (CONTRIBUTING)."""
_LEAST = 4.0
_NUM_SHOWN = 12

_last = 0.0


def _seconds() -> float:
    times = os.times()  # children: those that have ended
    own = times.user + times.system + times.children_user + times.children_system
    return own + sum(_seconds_of(pid) for pid in _children())


def _children() -> list[str]:
    try:
        return [
            pid
            for task in Path("/proc/self/task").iterdir()
            for pid in (task / "children").read_text().split()
        ]
    except OSError:  # not Linux
        return []


def _seconds_of(pid: str) -> float:
    """Return what a running process and its children have used: the server of ``tests/processes.py`` runs on."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-file",
        type=Path,
        help="write the processor seconds of the long files of tests to this JSON file",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the long files begin, where several processes share the work: none is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        costs = json.loads(COSTS.read_text(encoding="utf-8"))
        items.sort(key=lambda item: -costs.get(item.nodeid.partition("::")[0], 0.0))


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
        self.by_test[report.nodeid] += float(dict(report.user_properties).get("cpu_seconds", 0.0))

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        path = config.getoption("--cpu-file")
        if path is not None:
            self._write(path)
        terminalreporter.write_sep("=", f"{sum(self.by_test.values()):.0f} processor seconds")
        for name, seconds in self.by_test.most_common(_NUM_SHOWN):
            if seconds > LIMIT:
                terminalreporter.write_line(f"{seconds:6.1f} s  {name}")

    def _write(self, path: Path) -> None:
        files: Counter[str] = Counter()
        for name, seconds in self.by_test.items():
            files[name.partition("::")[0]] += seconds
        long = {name: round(seconds) for name, seconds in files.most_common() if seconds >= _LEAST}
        path.write_text(json.dumps(long, indent=0) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Totals(), "cpu-totals")
