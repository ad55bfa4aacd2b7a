"""The guard of the benchmarks: which ratios fail."""

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def guard():
    spec = importlib.util.spec_from_file_location("quick", BENCHMARKS / "quick.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("now", "word"), [(7.6, "as before"), (7.4, "slower"), (12.4, "as before"), (12.6, "faster")]
)
def test_c_a_ratio_may_lose_a_quarter(guard, now, word):
    assert guard.verdict(10.0, now) == word


def test_c_the_guard_fails_for_what_is_slower_or_missing(guard):
    committed = {"bench_x": {"a": 2.0, "b": 4.0}}
    assert guard.compare(committed, {"bench_x": {"a": 2.1, "b": 5.5, "c": 0.1}})[1]
    lines, held = guard.compare(committed, {"bench_x": {"a": 1.4}})
    assert not held
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["slower", "missing"]


def test_c_the_guard_knows_benchmarks_that_exist():
    committed = json.loads((BENCHMARKS / "results" / "quick.json").read_text())
    assert committed
    assert all((BENCHMARKS / f"{name}.py").is_file() and ratios for name, ratios in committed.items())
