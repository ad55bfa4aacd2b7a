"""The guard of the benchmarks, and the full-size runs at the sizes of tests."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name):
    """Return a script of the benchmarks as a module."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the scripts import each other by these names
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("now", "word"), [(7.6, "as before"), (7.4, "slower"), (12.4, "as before"), (12.6, "faster")]
)
def test_a_ratio_may_lose_a_quarter(now, word):
    assert script("quick").verdict(10.0, now) == word


def test_the_guard_fails_for_what_is_slower_or_missing():
    committed = {"bench_x": {"a": 2.0, "b": 4.0}}
    compare = script("quick").compare
    assert compare(committed, {"bench_x": {"a": 2.1, "b": 5.5, "c": 0.1}})[1]
    lines, held = compare(committed, {"bench_x": {"a": 1.4}})
    assert not held
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["slower", "missing"]


def test_the_guard_knows_benchmarks_that_exist():
    import json

    committed = json.loads((BENCHMARKS / "results" / "quick.json").read_text())
    assert committed
    assert all((BENCHMARKS / f"{name}.py").is_file() and ratios for name, ratios in committed.items())


FOUND = {
    "seconds": 2.0, "peak_gib": 2.0, "planned_gib": 2.2, "flops": 1e12, "tokens": [18, 24, 18], "parameters": 1,
    "batch_size": 1, "steps": 1000, "configured_batch": 4, "finite": True,
}  # fmt: skip


def test_full_size_names_what_breaks_a_bound():
    full = script("full_size")
    assert full.verdicts({"train a": FOUND, "generate a": {"error": "not done after 5 s"}}) == []
    assert full.verdicts({"train a": FOUND | {"planned_gib": 2.4}}) == ["a: planned 2.40 GiB, measured 2.00"]
    assert full.verdicts({"generate a": {"peak_gib": 25.0}}) == ["generate a: 25.0 GiB"]
    assert full.verdicts({"exact a": {"peak_gib": 3.5}}) == ["exact a: 3.5 GiB"]
    assert full.hours_on_a100(FOUND) == pytest.approx(4 * 1e15 / (0.4 * 312e12) / 3600)
    page = full.table({"train a": FOUND, "generate b": {"error": "not done after 5 s"}})
    assert "| a | 18 × 24 × 18 | 1.00 | 2.20 | 2.00 | 1.10 | 2.0 | 0 |" in page
    assert "- `b`, generate: not done after 5 s." in page


@pytest.mark.parametrize("name", script("_shipped").names())
def test_a_step_and_a_volume_of_every_shipped_configuration(name):
    """At the sizes of tests; `make full-size` does the same at real size."""
    shipped, full = script("_shipped"), script("full_size")
    import torch

    from prod9.training.optimizers import build_optimizer

    made = shipped.recipe(name, shipped.shrunk)
    networks = list(made.networks().values())
    pairs = enumerate(zip(networks, made.peak_rates(), strict=True))
    optimizers = [build_optimizer(n, made.config.training, rate=r, main=k == 0) for k, (n, r) in pairs]
    batch = shipped.batch_of(made)
    losses = full.step_of(made, optimizers, batch, made.config.training.max_steps - 1)
    assert all(bool(value.isfinite()) for value in losses.values())
    for network in networks:
        network.eval()
    with torch.no_grad():
        volume = full.volume_of(made, {key: value[:1] for key, value in batch.items()})
    assert volume.ndim == 3
    assert shipped.needs_of(name, shipped.shrunk).parameters == sum(
        parameter.numel() for network in networks for parameter in network.parameters()
    )
