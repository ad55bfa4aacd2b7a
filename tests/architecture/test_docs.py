"""Generated tables are up to date and links lead somewhere."""

import importlib.util
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from prod9.stages import STAGES

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "docs" / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_regenerating_the_tables_changes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["config_tables.py", "--check"])
    assert load("config_tables").main() == 0, capsys.readouterr().out


def test_every_link_leads_to_a_file(capsys):
    assert load("check_links").main() == 0, capsys.readouterr().out


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    tool = load("check_links")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("[a](page.md) [b](gone.md#x) `[c](code.md)` [d](#here) ![e](gone.png)")
    assert tool.broken_links(page) == ["page.md: gone.md", "page.md: gone.png"]


def test_every_later_stage_has_its_autoencoder():
    tables = load("config_tables")
    configs = tables.shipped()
    for config in configs.values():
        bases = tables.bases_of(config, configs)
        numbers = [STAGES[base.stage].number for base in bases]
        assert numbers[-1:] == ([] if STAGES[config.stage].number == 1 else [1])
        if config.data.kind == "medmnist3d":
            continue  # divided by its makers
        shares = config.data.split
        assert (shares.train, shares.val, shares.test) == pytest.approx((0.7, 0.15, 0.15))


def test_every_extra_that_is_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    folders = (ROOT / name for name in ("docs", "src", "examples", "container"))
    files = chain.from_iterable(folder.rglob("*") for folder in folders)
    texts = (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
    found = {
        (str(path.relative_to(ROOT)), name.strip())
        for path in chain(texts, files)
        if path.suffix in (".md", ".py", ".ipynb", "") and path.is_file() and "_build" not in path.parts
        for names in re.findall(r"prod9\[([a-z_, -]+)\]", path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert len(found) > 10
    assert [where for where in sorted(found) if where[1] not in extras] == []
